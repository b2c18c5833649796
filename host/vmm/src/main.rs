//! host/vmm
fn main() {}
