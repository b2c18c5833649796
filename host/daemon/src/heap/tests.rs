use super::{prepare, trim};
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::sync::Barrier;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Resident memory of this process, bytes. Allocates nothing, which could come to lie above what is to be freed.
fn resident() -> usize {
    let mut text = [0; 128];
    let mut file = File::open("/proc/self/statm").unwrap();
    let length = file.read(&mut text).unwrap();
    let text = std::str::from_utf8(&text[..length]).unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * PAGE
}

#[test]
fn what_threads_have_freed_goes_back() {
    prepare();
    // A block that is freed lets the allocator keep twice as much at the end of an arena, unless it is told.
    drop(black_box(vec![1_u8; 16 * MIB]));
    let before = resident();
    let full = Barrier::new(3);
    let held = std::thread::scope(|scope| {
        // As many threads as arenas: the allocator gives them different ones.
        for _ in 0..2 {
            scope.spawn(|| {
                let pieces: Vec<Vec<u8>> = (0..24 * 1024).map(|_| vec![1; 1024]).collect();
                full.wait();
                full.wait();
                drop(black_box(pieces));
            });
        }
        full.wait();
        let held = resident();
        full.wait();
        held
    });
    assert!(held > before + 40 * MIB, "{before} bytes, then {held}");
    trim();
    let after = resident();
    // Other tests run beside this one.
    assert!(after < before + 8 * MIB, "{before} bytes, then {after}");
}
