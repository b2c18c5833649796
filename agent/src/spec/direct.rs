//! Mounts of type `direct`: a file system on a disk of the pod's own. The source is the disk's serial.

use super::absolute;
use crate::id::quote;
use crate::init::plan::{DirectVolume, FsGroup, Source};
use crate::pod::{FILE_SYSTEMS, mount_options};
use crate::{Error, Result, disk};
use oci_spec::runtime;

/// Checks and translates one. `parameters` are those of its options that are no attributes of a mount.
pub(super) fn convert(
    mount: &runtime::Mount,
    parameters: &[(String, Option<String>)],
    target: &str,
) -> Result<Source> {
    let wrong = |what: &str| {
        let target = quote(target);
        Error::Invalid(format!("The direct volume of {target} has {what}"))
    };
    let serial = mount.source().as_ref().map(|path| path.to_string_lossy());
    let mut volume = DirectVolume {
        disk: serial.unwrap_or_default().into_owned(),
        file_system: String::new(),
        options: Vec::new(),
        fs_group: None,
    };
    disk::check_serial(&volume.disk)?;
    let mut sub_path = ".".to_owned();
    let mut on_root_mismatch = false;
    for (key, value) in parameters {
        let value = value.as_deref().unwrap_or_default();
        match key.as_str() {
            "fstype" => value.clone_into(&mut volume.file_system),
            "fs-options" => volume.options = value.split(',').map(str::to_owned).collect(),
            "fs-group" => {
                let gid = value.parse().map_err(|_| wrong("a group that is none"))?;
                let on_root_mismatch = false;
                volume.fs_group = Some(FsGroup {
                    gid,
                    on_root_mismatch,
                });
            }
            "fs-group-on-root-mismatch" if value.is_empty() => on_root_mismatch = true,
            "subpath" if !value.is_empty() => {
                sub_path = absolute(&format!("/{value}"), "subpath of a direct volume")?;
            }
            _ => return Err(wrong(&format!("the unknown option {}", quote(key)))),
        }
    }
    if let Some(group) = &mut volume.fs_group {
        group.on_root_mismatch = on_root_mismatch;
    }
    if !FILE_SYSTEMS.contains(&volume.file_system.as_str()) {
        let kind = quote(&volume.file_system);
        return Err(wrong(&format!(
            "the file system {kind}, which is not supported"
        )));
    }
    mount_options(&volume.options)?;
    Ok(Source::Direct {
        volume,
        sub_path,
        root: Default::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::convert;
    use crate::init::plan::{DirectVolume, FsGroup, Source};
    use oci_spec::runtime::MountBuilder;

    fn parse(source: &str, options: &[&str]) -> Result<Source, String> {
        let mount = MountBuilder::default().source(source).build().unwrap();
        let split = |option: &&str| match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => ((*option).to_owned(), None),
        };
        let parameters: Vec<_> = options.iter().map(split).collect();
        convert(&mount, &parameters, "/data").map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_for_is_what_is_planned() {
        let options = [
            "fs-group-on-root-mismatch",
            "fstype=ext4",
            "fs-options=noatime,discard",
            "fs-group=4000",
            "subpath=a/b",
        ];
        let expected = Source::Direct {
            volume: DirectVolume {
                disk: "rw3".to_owned(),
                file_system: "ext4".to_owned(),
                options: vec!["noatime".to_owned(), "discard".to_owned()],
                fs_group: Some(FsGroup {
                    gid: 4000,
                    on_root_mismatch: true,
                }),
            },
            sub_path: "/a/b".to_owned(),
            root: Default::default(),
        };
        assert_eq!(parse("rw3", &options), Ok(expected));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let ext4 = "fstype=ext4";
        for (source, options, word) in [
            ("../rw3", vec![ext4], "../rw3"),
            ("", vec![ext4], "serial"),
            ("rw3", vec![], "file system"),
            ("rw3", vec!["fstype=xfs"], "xfs"),
            ("rw3", vec!["fstype=overlay"], "overlay"),
            (
                "rw3",
                vec![ext4, "fs-options=noatime,journal_dev=1"],
                "journal_dev",
            ),
            ("rw3", vec![ext4, "fs-options="], "option"),
            ("rw3", vec![ext4, "fs-group=x"], "group"),
            ("rw3", vec![ext4, "fs-group=-1"], "group"),
            (
                "rw3",
                vec![ext4, "fs-group-on-root-mismatch=no"],
                "fs-group-on",
            ),
            ("rw3", vec![ext4, "subpath="], "subpath"),
            ("rw3", vec![ext4, "subpath=a/../../b"], "subpath"),
            ("rw3", vec![ext4, "mode=777"], "mode"),
        ] {
            let error = parse(source, &options).unwrap_err();
            assert!(error.contains(word), "{source} {options:?}: {error}");
        }
    }
}
