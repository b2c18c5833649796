//! What holds for every specification that is accepted.

use bulkhead_agent::cgroup::Setting;
use bulkhead_agent::init::plan::{Place, Plan, Process, Source};
use std::path::{Component, Path};

/// Parses one and checks what comes out.
pub fn spec(json: &[u8]) {
    let Ok(parsed) = bulkhead_agent::spec::parse(json) else {
        return;
    };
    let container = &parsed.container;
    process(&parsed.process);
    for mount in &container.mounts {
        inside(&mount.target);
        assert!(
            Path::new(&mount.target).components().count() > 1,
            "{mount:?}"
        );
        match &mount.what {
            Source::Bind { path, create, .. } => {
                inside(path);
                assert!(
                    !create || path.starts_with(bulkhead_agent::spec::VOLUMES),
                    "{mount:?}"
                );
            }
            // The sub-path is resolved inside the image, whatever it says.
            Source::Image { disk, root, .. } => {
                assert!(!disk.is_empty() && root.as_os_str().is_empty(), "{mount:?}");
            }
            Source::Shared { name, root, .. } => {
                assert!(!name.is_empty() && root.as_os_str().is_empty(), "{mount:?}");
            }
            // As for images.
            Source::EmptyDir { volume, root, .. } => {
                assert!(!volume.name.is_empty() && !volume.name.contains('/'), "{mount:?}");
                assert!(volume.mode <= 0o7777 && root.as_os_str().is_empty(), "{mount:?}");
            }
            Source::Direct { volume, root, .. } => {
                assert!(!volume.disk.is_empty() && !volume.disk.contains('/'), "{mount:?}");
                assert!(volume.file_system == "ext4" && root.as_os_str().is_empty(), "{mount:?}");
            }
            Source::New { kind, .. } => {
                assert!(
                    kind.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                    "{mount:?}"
                );
            }
        }
    }
    container
        .masked
        .iter()
        .chain(&container.read_only)
        .for_each(|path| inside(path));
    container
        .devices
        .iter()
        .for_each(|device| inside(&device.path));
    assert_eq!(
        container.join_namespaces.len(),
        parsed.namespace_files.len()
    );
    parsed.settings.iter().for_each(setting);
    // What the process is told is what was checked.
    let plan = Plan {
        ids: parsed.ids,
        place: Place::Make(Box::new(parsed.container)),
        process: parsed.process,
    };
    let text = serde_json::to_vec(&plan).expect("a plan is JSON");
    assert_eq!(serde_json::from_slice::<Plan>(&text).expect("a plan"), plan);
}

/// Checks a process.
pub fn process(process: &Process) {
    inside(&process.cwd);
    assert!(
        process
            .args
            .first()
            .is_some_and(|program| !program.is_empty())
    );
    let texts = process.args.iter().chain(&process.env);
    assert!(texts.into_iter().all(|text| !text.contains('\0')));
    assert!(
        process
            .limits
            .iter()
            .all(|(resource, soft, hard)| *resource < 16 && soft <= hard)
    );
}

/// A file of the container's cgroup and no other.
pub fn setting(setting: &Setting) {
    let file = &setting.file;
    assert!(
        !file.contains('/') && file.contains('.') && !file.starts_with("cgroup."),
        "{setting:?}"
    );
}

fn inside(path: &str) {
    assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
    let up = Path::new(path)
        .components()
        .any(|part| part == Component::ParentDir);
    assert!(!up, "{path:?}");
}
