//! host/daemon
fn main() {}
