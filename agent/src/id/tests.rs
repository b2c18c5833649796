use super::*;

#[test]
fn names_that_could_leave_their_directory_are_refused() {
    for bad in ["", ".", "..", "a/b", "/a", "-x", ".x", "a b", "a\0", "ü"] {
        assert!(Id::parse("Container", bad).is_err(), "{bad:?}");
    }
    assert!(Id::parse("Container", &"a".repeat(129)).is_err());
    for good in ["a", "0", "web-1.2_x", &"a".repeat(128)] {
        assert!(Id::parse("Container", good).is_ok(), "{good:?}");
    }
}

#[test]
fn quoted_text_is_bounded_and_escaped() {
    assert_eq!(quote("a\nb"), r#""a\nb""#);
    assert!(quote(&"x".repeat(10_000)).len() < 300);
}
