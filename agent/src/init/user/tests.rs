use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment:x:9:9::/:\nweb:x:33:34:www:/srv/web:/bin/sh\nbroken:x:abc:1::/:\n1000:x:7:7::/seven:\nempty:x:8:8:::\n";
const GROUP: &str =
    "root:x:0:\nwww:x:34:\nlogs:x:50:web,other\ntape:x:51:otherweb\nmore:x:52:x,web\n";

fn resolve(spec: &str) -> Result<Identity, Failure> {
    super::resolve(spec, PASSWD, GROUP)
}

#[test]
fn a_name_brings_its_group_and_memberships() {
    let web = resolve("web").unwrap();
    assert_eq!((web.uid, web.gid), (33, 34));
    assert_eq!(web.groups, [34, 50, 52]);
    assert_eq!(resolve("33").unwrap(), web);
}

#[test]
fn a_group_after_the_colon_takes_the_place_of_the_primary_one() {
    assert_eq!(resolve("web:logs").unwrap().gid, 50);
    assert_eq!(resolve("web:7").unwrap().gid, 7);
    assert_eq!(
        resolve("5:6").unwrap(),
        Identity {
            uid: 5,
            gid: 6,
            groups: vec![6]
        }
    );
}

#[test]
fn a_number_need_not_be_in_the_image_but_a_name_must() {
    assert_eq!(
        resolve("4242").unwrap(),
        Identity {
            uid: 4242,
            gid: 0,
            groups: vec![0]
        }
    );
    assert_eq!(resolve("nobody").unwrap_err().kind, FailureKind::NotFound);
    assert_eq!(
        resolve("web:nobody").unwrap_err().kind,
        FailureKind::NotFound
    );
    for bad in [
        "broken",
        "",
        ":",
        "-1",
        "+5",
        "4294967295",
        "4294967296",
        "web:",
    ] {
        assert!(resolve(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_name_of_digits_is_found_by_name_first() {
    assert_eq!(resolve("1000").unwrap().uid, 7);
}

#[test]
fn home_comes_from_the_user_number() {
    assert_eq!(home(33, PASSWD), Some("/srv/web"));
    assert_eq!(home(8, PASSWD), None);
    assert_eq!(home(99, PASSWD), None);
    assert_eq!(home(0, "\n:::\nx\n\u{0}:1"), None);
}
