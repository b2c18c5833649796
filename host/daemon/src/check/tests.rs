use super::{Finding, Outcome, files, kernel, virtualization};
use std::path::Path;

/// A line that is not well says what to do.
fn assert_helpful(finding: &Finding, outcome: Outcome) {
    assert_eq!(finding.outcome, outcome, "{finding:?}");
    assert_eq!(
        finding.advice.is_empty(),
        outcome == Outcome::Ok,
        "{finding:?}"
    );
    assert!(!finding.found.is_empty());
}

#[test]
fn nx_huge_pages_matters_unless_it_is_off_or_moves_are_quick() {
    let plain = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0";
    let quick = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,favordynmods 0 0";
    for (setting, mounts, outcome) in [
        (None, plain, Outcome::Ok),
        (Some("N"), plain, Outcome::Ok),
        (Some("never"), plain, Outcome::Ok),
        (Some("Y"), quick, Outcome::Ok),
        (Some("Y"), plain, Outcome::Warning),
        (Some("auto"), "", Outcome::Warning),
    ] {
        assert_helpful(&virtualization::judge(setting, mounts), outcome);
    }
}

#[test]
fn kernel_releases_are_numbers() {
    assert_eq!(kernel::number("6.12.1-amd64"), Some((6, 12)));
    assert_eq!(kernel::number("5.4"), Some((5, 4)));
    assert_eq!(kernel::number("x"), None);
}

#[test]
fn controllers_must_be_there() {
    assert_helpful(
        &kernel::controllers("cpuset cpu io memory pids\n"),
        Outcome::Ok,
    );
    assert_helpful(&kernel::controllers("cpu\n"), Outcome::Warning);
}

#[test]
fn little_room_is_a_warning() {
    assert_helpful(&files::room(Path::new("/x"), 3 << 30), Outcome::Ok);
    assert_helpful(&files::room(Path::new("/x"), 1 << 20), Outcome::Warning);
}

#[test]
fn what_is_missing_is_named_with_its_option() {
    let mut config = crate::config::Config {
        vmm: "/nonexistent/vmm".into(),
        ..Default::default()
    };
    for runtime in config.runtimes.values_mut() {
        runtime.kernel = "/nonexistent/kernel".into();
    }
    let findings = files::parts(&config);
    assert_helpful(&findings[0], Outcome::Failed);
    assert!(
        findings[1].advice.contains("[runtimes.bulkhead]"),
        "{:?}",
        findings[1]
    );
}
