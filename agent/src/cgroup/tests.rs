use super::*;

#[test]
fn reads_a_field_of_a_flat_keyed_file() {
    let text = "low 0\nhigh 1\noom 2\noom_kill 3\noom_group_kill 4\n";
    assert_eq!(field(text, "oom_kill"), 3);
    assert_eq!(field(text, "oom"), 2);
    assert_eq!(field(text, "max"), 0);
    assert_eq!(field("oom_kill x\n", "oom_kill"), 0);
}
