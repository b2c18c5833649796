use super::*;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_name_without_a_slash_is_looked_for_in_path() {
    assert_eq!(candidates("a", &strings(&["PATH=/x:/y"])), ["/x/a", "/y/a"]);
    assert_eq!(candidates("./a", &strings(&["PATH=/x"])), ["./a"]);
    assert_eq!(candidates("a", &[]).len(), 6);
    // Of two the last counts, as for getenv of a shell that sorted it out; empty means nothing.
    assert_eq!(
        candidates("a", &strings(&["PATH=/x", "PATH=:/z:"])),
        ["/z/a"]
    );
}

#[test]
fn home_is_added_only_when_it_is_missing() {
    assert_eq!(
        environment(&strings(&["A=1"]), "/root"),
        ["A=1", "HOME=/root"]
    );
    assert_eq!(environment(&strings(&["HOME=/x"]), "/root"), ["HOME=/x"]);
}

#[test]
fn what_is_not_there_or_not_executable_is_told_apart() {
    let kind = |args: &[&str]| run(&strings(args), &strings(&["PATH=/nowhere"])).kind;
    assert_eq!(kind(&["no-such-program"]), FailureKind::NotFound);
    assert_eq!(kind(&["/no/such/program"]), FailureKind::NotFound);
    assert_eq!(kind(&["/etc/passwd"]), FailureKind::Denied);
    assert_eq!(kind(&["/etc"]), FailureKind::Denied);
    assert_eq!(kind(&[]), FailureKind::Invalid);
    assert_eq!(kind(&[""]), FailureKind::Invalid);
    let message = run(&strings(&["foo"]), &[]).message;
    assert_eq!(message, "The program \"foo\" is not in the image's PATH");
}
