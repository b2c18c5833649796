use super::*;

#[test]
fn reads_a_field_of_a_flat_keyed_file() {
    let text = "low 0\nhigh 1\noom 2\noom_kill 3\noom_group_kill 4\n";
    assert_eq!(field(text, "oom_kill"), 3);
    assert_eq!(field(text, "oom"), 2);
    assert_eq!(field(text, "max"), 0);
    assert_eq!(field("oom_kill x\n", "oom_kill"), 0);
}

#[test]
fn old_values_are_written_as_they_can_be_read() {
    let restore = update::restore;
    assert_eq!(restore("5", "max\n"), "max");
    assert_eq!(restore("max 50000", "max 100000\n"), "max 100000");
    assert_eq!(restore("0-1", "\n"), "\n");
    let now =
        "8:0 rbps=max wbps=10 riops=max wiops=max\n8:16 rbps=1 wbps=max riops=max wiops=max\n";
    assert_eq!(
        restore("8:16 rbps=7", now),
        "8:16 rbps=1 wbps=max riops=max wiops=max"
    );
    assert_eq!(
        restore("8:32 rbps=7", now),
        "8:32 rbps=max wbps=max riops=max wiops=max"
    );
    assert_eq!(restore("8:0 200", "default 100\n"), "8:0 default");
}
