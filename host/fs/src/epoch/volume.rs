//! The numbers of volumes.
//!
//! A volume's name is the beginning of its container's id, twelve hexadecimal digits, a dash, and which of the
//! container's it is. That fits below the mark: 48 bits and 15 bits.

use std::ffi::{CStr, CString};

/// What only the numbers of volumes have.
pub(super) const MARK: u64 = 1 << 63;
const DIGITS: usize = 12;
const INDEX_BITS: u32 = 15;
const INDEX: u64 = (1 << INDEX_BITS) - 1;

/// The number of a volume of this name; `None` for a name that no volume has.
pub(super) fn number(name: &CStr) -> Option<u64> {
    let text = name.to_str().ok()?;
    let (container, index) = text.split_once('-')?;
    let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if container.len() != DIGITS || !container.bytes().all(hexadecimal) {
        return None;
    }
    let container = u64::from_str_radix(container, 16).ok()?;
    let index: u64 = index.parse().ok()?;
    let number = MARK | container << INDEX_BITS | index;
    // There is one way to write each.
    (index <= INDEX && self::name(number)?.as_c_str() == name).then_some(number)
}

/// The name of the volume of this number.
pub(super) fn name(number: u64) -> Option<CString> {
    if number & MARK == 0 {
        return None;
    }
    let container = (number & !MARK) >> INDEX_BITS;
    let index = number & INDEX;
    CString::new(format!("{container:0DIGITS$x}-{index}")).ok()
}
