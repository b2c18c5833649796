//! Payloads: a few instructions that run instead of a kernel, wherever there is a `/dev/kvm` of any kind.

#![allow(unreachable_pub, dead_code)]

use crate::support::{Images, Shape, say};
use std::path::{Path, PathBuf};

/// Where a payload is loaded and entered.
pub const ADDRESS: u32 = 0x20_0000;

/// `mov dx, port; mov al, value; out dx, al`.
pub fn out_byte(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Writes SLP_EN and the sleep type of S5 to the PM1a control register.
pub fn power_off() -> Vec<u8> {
    vec![0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef]
}

/// Waits for ever.
pub fn halt() -> Vec<u8> {
    vec![0xf4, 0xeb, 0xfd]
}

/// An ELF image with a PVH note and this code at 2 MiB.
pub fn image(code: &[u8]) -> Vec<u8> {
    const CODE: u64 = 0x200;
    const NOTE: u64 = 0x100;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend(2_u16.to_le_bytes());
    image.extend(62_u16.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    image.extend(u64::from(ADDRESS).to_le_bytes());
    image.extend(64_u64.to_le_bytes());
    image.extend([0; 12]);
    for half in [64_u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, size: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(5_u32.to_le_bytes());
        for field in [offset, address, address, size, size, 0] {
            image.extend(field.to_le_bytes());
        }
    };
    header(1, CODE, u64::from(ADDRESS), code.len() as u64);
    header(4, NOTE, 0, 20);
    image.resize(NOTE as usize, 0);
    for word in [4_u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(ADDRESS.to_le_bytes());
    image.resize(CODE as usize, 0);
    image.extend(code);
    image
}

/// A directory for a payload's files.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn shape(&self, code: &[u8]) -> Shape {
        Shape::new(&Images {
            kernel: self.file("kernel", &image(code)),
            initrd: self.file("initrd", b""),
        })
    }
}

/// Whether payloads can run here; says so if not.
pub fn has_kvm() -> bool {
    let present = Path::new("/dev/kvm").exists();
    if !present {
        say("skipped: there is no /dev/kvm\n");
    }
    present
}
