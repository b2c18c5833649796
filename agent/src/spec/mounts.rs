//! `mounts[]`: fstab-style options become mount attributes, propagation and parameters.

use super::{VOLUMES, absolute, direct, id_maps, limited, refuse};
use crate::id::{self, quote};
use crate::init::plan::{EmptyDir, IdMaps, Mount, Source};
use crate::sys::mount::attr;
use crate::{Error, Result};
use oci_spec::runtime;
use std::path::Path;

/// File systems that a container may mount anew.
const KINDS: [&str; 6] = ["proc", "sysfs", "cgroup2", "tmpfs", "devpts", "mqueue"];

/// The longest name of a volume, as Kubernetes has it.
const MAX_VOLUME_NAME: usize = 63;

/// Checks and translates one mount.
///
/// `container` are the mappings of the container's user namespace.
pub(super) fn convert(mount: &runtime::Mount, container: &IdMaps) -> Result<Mount> {
    let target = absolute(&mount.destination().to_string_lossy(), "mount destination")?;
    if Path::new(&target).components().count() < 2 {
        return Err(Error::Unimplemented(
            "A mount on the root itself is not supported".to_owned(),
        ));
    }
    let own = id_maps(mount.uid_mappings(), mount.gid_mappings())?;
    let mut options = Options::default();
    for option in limited(mount.options(), "mount options")? {
        options.add(option, &target)?;
    }
    let kind = mount.typ().as_deref().unwrap_or("");
    let ids = match (options.id_map, own.is_empty()) {
        (None, true) => None,
        (Some(_), true) if container.is_empty() => {
            return Err(Error::Invalid(format!(
                "The mount of {} has no mappings and the container no user namespace to take them from",
                quote(&target)
            )));
        }
        (recursive, true) => Some((container.clone(), recursive.unwrap_or(false))),
        (recursive, false) => Some((own, recursive.unwrap_or(false))),
    };
    let what = if kind == "image" {
        options.set |= attr::RDONLY;
        image(mount, &options, &target)?
    } else if kind == "shared" {
        shared(mount, &options, &target)?
    } else if kind == "empty-dir" {
        empty_dir(mount, &options, &target)?
    } else if kind == "direct" {
        direct::convert(mount, &options.parameters, &target)?
    } else if options.bind || kind == "bind" {
        // What belongs to a file system, not to a mount, has no meaning for a bind.
        options
            .parameters
            .retain(|(name, value)| value.is_some() || !SUPER_FLAGS.contains(&name.as_str()));
        if let Some((name, _)) = options.parameters.first() {
            return Err(Error::Invalid(format!(
                "A bind mount does not know option {}",
                quote(name)
            )));
        }
        let source = mount.source().as_ref().map(|path| path.to_string_lossy());
        let path = absolute(&source.unwrap_or_default(), "source of a bind mount")?;
        Source::Bind {
            recursive: options.recursive,
            create: Path::new(&path).starts_with(VOLUMES) && Path::new(&path) != Path::new(VOLUMES),
            path,
        }
    } else {
        let kind = if kind == "cgroup" { "cgroup2" } else { kind };
        if !KINDS.contains(&kind) {
            return Err(Error::Unimplemented(format!(
                "File system {} for {} is not supported",
                quote(kind),
                quote(&target)
            )));
        }
        // An instance of its own is what every devpts is; the kernel no longer knows the word.
        options.parameters.retain(|(name, _)| name != "newinstance");
        let source = mount.source().as_ref().map(|path| path.to_string_lossy());
        let source = source.as_deref().unwrap_or(kind);
        if source.contains('\0') || source.len() > 255 {
            return Err(Error::Invalid(format!(
                "The source of the mount {} is not valid",
                quote(&target)
            )));
        }
        refuse("an id-mapped mount of a new file system", ids.is_some())?;
        Source::New {
            kind: kind.to_owned(),
            source: source.to_owned(),
            parameters: options.parameters,
        }
    };
    Ok(Mount {
        target,
        what,
        set: options.set,
        clear: whole_atime(options.set, options.clear),
        set_recursive: options.set_recursive,
        clear_recursive: whole_atime(options.set_recursive, options.clear_recursive),
        propagation: options.propagation,
        ids,
        copy_up: options.copy_up,
    })
}

/// A volume that the pod shares with the node: the source is its name.
fn shared(mount: &runtime::Mount, options: &Options, target: &str) -> Result<Source> {
    let name = mount.source().as_ref().map(|path| path.to_string_lossy());
    let name = name.unwrap_or_default().into_owned();
    crate::disk::check_serial(&name)?;
    let mut mirror = false;
    for (option, value) in &options.parameters {
        if option != "mirror" || value.is_some() {
            return Err(Error::Invalid(format!(
                "The shared volume of {} does not know option {}",
                quote(target),
                quote(option)
            )));
        }
        mirror = true;
    }
    Ok(Source::Shared {
        name,
        mirror,
        root: Default::default(),
    })
}

/// An emptyDir volume: the source is its name in the pod.
fn empty_dir(mount: &runtime::Mount, options: &Options, target: &str) -> Result<Source> {
    let wrong = |what: &str| {
        let target = quote(target);
        Error::Invalid(format!("The emptyDir volume of {target} has {what}"))
    };
    let name = mount.source().as_ref().map(|path| path.to_string_lossy());
    let mut volume = EmptyDir {
        name: name.unwrap_or_default().into_owned(),
        mode: 0o777,
        uid: 0,
        gid: 0,
        memory: None,
    };
    if volume.name.len() > MAX_VOLUME_NAME || !id::check(&volume.name) {
        return Err(wrong("a name that is not valid"));
    }
    let mut sub_path = ".".to_owned();
    for (key, value) in &options.parameters {
        let value = value.as_deref().unwrap_or_default();
        let number = || value.parse().map_err(|_| wrong("a number that is none"));
        match key.as_str() {
            "mode" => {
                volume.mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| wrong("a mode that is none"))?;
            }
            "uid" => volume.uid = number()?,
            "gid" => volume.gid = number()?,
            "memory" => {
                let size = value.parse().map_err(|_| wrong("a size that is none"))?;
                volume.memory = Some(size);
            }
            "subpath" if !value.is_empty() => {
                sub_path = absolute(&format!("/{value}"), "subpath of an emptyDir volume")?;
            }
            _ => return Err(wrong(&format!("the unknown option {}", quote(key)))),
        }
    }
    Ok(Source::EmptyDir {
        volume,
        sub_path,
        root: Default::default(),
    })
}

/// A part of an image: the source is the serial of its disk.
fn image(mount: &runtime::Mount, options: &Options, target: &str) -> Result<Source> {
    let serial = mount.source().as_ref().map(|path| path.to_string_lossy());
    let serial = serial.unwrap_or_default().into_owned();
    crate::disk::check_serial(&serial)?;
    let mut sub_path = ".".to_owned();
    for (name, value) in &options.parameters {
        match (name.as_str(), value) {
            ("subpath", Some(path)) if !path.is_empty() => {
                // Relative or not, it begins at the image's root.
                sub_path = absolute(&format!("/{path}"), "subpath of an image")?;
            }
            _ => {
                return Err(Error::Invalid(format!(
                    "The image mount of {} does not know option {}",
                    quote(target),
                    quote(name)
                )));
            }
        }
    }
    Ok(Source::Image {
        disk: serial,
        root: Default::default(),
        sub_path,
    })
}

/// Options that are flags of a file system, not of a mount: `fsconfig` takes them by name.
const SUPER_FLAGS: [&str; 4] = ["sync", "dirsync", "lazytime", "mand"];

/// mount_setattr(2) wants the whole access-time field cleared whenever a mode is set.
fn whole_atime(set: u64, clear: u64) -> u64 {
    if (set | clear) & attr::ATIME == 0 {
        clear
    } else {
        clear | attr::ATIME
    }
}

#[derive(Default)]
struct Options {
    bind: bool,
    recursive: bool,
    set: u64,
    clear: u64,
    set_recursive: u64,
    clear_recursive: u64,
    propagation: Option<(u64, bool)>,
    /// Asked for; `true` is recursive.
    id_map: Option<bool>,
    copy_up: bool,
    parameters: Vec<(String, Option<String>)>,
}

impl Options {
    fn add(&mut self, option: &str, target: &str) -> Result<()> {
        if option.contains('\0') || option.len() > 255 {
            return Err(Error::Invalid(format!(
                "A mount option of {} is not valid",
                quote(target)
            )));
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "tmpcopyup" => self.copy_up = true,
            // What is so anyway.
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "nomand" | "relatime"
            | "norelatime" | "diratime" | "atime" | "nostrictatime" | "symfollow"
            | "nolazytime" | "silent" | "loud" => self.cancel(option),
            _ => {
                if let Some((bits, clear)) = attribute(option) {
                    self.set = (self.set & !clear) | bits;
                    self.clear = (self.clear & !bits) | clear;
                } else if let Some((bits, clear)) =
                    option.strip_prefix('r').and_then(recursive_attribute)
                {
                    self.set_recursive = (self.set_recursive & !clear) | bits;
                    self.clear_recursive = (self.clear_recursive & !bits) | clear;
                } else if let Some(propagation) = propagation(option) {
                    self.propagation = Some(propagation);
                } else if matches!(option, "remount" | "iversion" | "noiversion") {
                    refuse(&format!("mount option {option}"), true)?;
                } else {
                    let (name, value) = match option.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (option, None),
                    };
                    self.parameters.push((name.to_owned(), value));
                }
            }
        }
        Ok(())
    }

    /// A positive option takes back a negative one before it; a bind keeps what its source has
    /// unless told otherwise.
    fn cancel(&mut self, option: &str) {
        let bits = match option {
            "rw" => attr::RDONLY,
            "suid" => attr::NOSUID,
            "dev" => attr::NODEV,
            "exec" => attr::NOEXEC,
            "diratime" => attr::NODIRATIME,
            "symfollow" => attr::NOSYMFOLLOW,
            "relatime" | "atime" | "nostrictatime" => {
                self.set &= !attr::ATIME;
                return;
            }
            "async" | "nomand" | "nolazytime" => {
                let flag = match option {
                    "async" => "sync",
                    other => other.trim_start_matches("no"),
                };
                self.parameters.retain(|(name, _)| name != flag);
                return;
            }
            _ => return,
        };
        self.set &= !bits;
        self.clear |= bits;
    }
}

/// Attribute bits to set and to clear. One of the access-time modes replaces the others.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attr::RDONLY, 0),
        "nosuid" => (attr::NOSUID, 0),
        "nodev" => (attr::NODEV, 0),
        "noexec" => (attr::NOEXEC, 0),
        "nodiratime" => (attr::NODIRATIME, 0),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "noatime" => (attr::NOATIME, attr::ATIME & !attr::NOATIME),
        "strictatime" => (attr::STRICTATIME, attr::ATIME & !attr::STRICTATIME),
        _ => return None,
    })
}

/// The same for the recursive options (`rro` and others); their opposites clear.
fn recursive_attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "rw" => (0, attr::RDONLY),
        "suid" => (0, attr::NOSUID),
        "dev" => (0, attr::NODEV),
        "exec" => (0, attr::NOEXEC),
        "diratime" => (0, attr::NODIRATIME),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        "relatime" | "atime" | "nostrictatime" => (0, attr::ATIME),
        _ => return attribute(option),
    })
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let flag = match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}
