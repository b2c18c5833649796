use super::*;

#[test]
fn the_level_comes_from_the_command_line() {
    assert_eq!(level("console=ttyS0 quiet\n"), Level::WARN);
    assert_eq!(level("bulkhead.log=debug x"), Level::DEBUG);
    assert_eq!(level("bulkhead.log=loud"), Level::WARN);
}
