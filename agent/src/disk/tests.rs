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
        platform: root.join("platform"),
        sys_block: root,
        dev: "/dev".into(),
    }
}

#[tokio::test]
async fn a_slot_without_a_driver_is_given_one() {
    let disks = machine("driver", &[("vda", Some("ro0"), "8\n")]);
    for (name, id, driver) in [
        ("LNRO0005:00", "0", true),
        ("LNRO0005:05", "ro0", true),
        ("LNRO0005:06", "ro1", false),
    ] {
        let path = disks.platform.join("devices").join(name);
        fs::create_dir_all(path.join("firmware_node")).unwrap();
        fs::write(path.join("firmware_node/uid"), format!("{id}\n")).unwrap();
        if driver {
            fs::create_dir(path.join("driver")).unwrap();
        }
    }
    let driver = disks.platform.join("drivers/virtio-mmio");
    fs::create_dir_all(&driver).unwrap();
    fs::write(driver.join("bind"), "").unwrap();
    assert!(!disks.give_driver("ro0").unwrap());
    assert!(!disks.give_driver("ro2").unwrap());
    assert_eq!(fs::read_to_string(driver.join("bind")).unwrap(), "");
    assert!(disks.give_driver("ro1").unwrap());
    assert_eq!(
        fs::read_to_string(driver.join("bind")).unwrap(),
        "LNRO0005:06"
    );
    // A driver that does not take it: here because it is no file.
    fs::remove_file(driver.join("bind")).unwrap();
    let deadline = Deadline::NEVER;
    let error = disks.wait("ro1", deadline).await.unwrap_err();
    assert!(error.to_string().contains("ro1"), "{error}");
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
