use super::*;
use std::fs;

fn machine(name: &str, disks: &[(&str, Option<&str>, &str)]) -> Disks {
    let root = std::env::temp_dir().join(format!("bulkhead-disk-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    for (disk, serial, size) in disks {
        let dir = root.join(disk);
        fs::create_dir_all(&dir).unwrap();
        if let Some(serial) = serial {
            fs::write(dir.join("serial"), serial).unwrap();
        }
        fs::write(dir.join("size"), size).unwrap();
    }
    Disks {
        sys_block: root,
        dev: "/dev".into(),
    }
}

#[test]
fn finds_a_disk_by_its_serial_when_it_is_not_empty() {
    let disks = machine(
        "find",
        &[
            ("loop0", None, "8\n"),
            ("vda", Some("ro0"), "0\n"),
            ("vdb", Some("ro1\n"), "2048\n"),
        ],
    );
    assert_eq!(disks.find("ro0").unwrap(), None);
    assert_eq!(disks.find("ro").unwrap(), None);
    let found = disks.find("ro1").unwrap().unwrap();
    assert_eq!(found.node, Path::new("/dev/vdb"));
    assert_eq!(found.size, 1 << 20);
}

#[test]
fn serials_are_names_of_at_most_20_bytes() {
    assert!(check_serial("image-0").is_ok());
    assert!(check_serial("").is_err());
    assert!(check_serial("a/b").is_err());
    assert!(check_serial(&"a".repeat(21)).is_err());
}
