//! What a container is made of, and getting rid of it again.

use super::launch::{Birth, Waiting, launch};
use super::stdio::Prepared;
use super::usage::Usage;
use super::{CreateSpec, ExecSpec, Image, Shared};
use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::error::Context;
use crate::init::plan::{Place, Plan, fds};
use crate::seccomp::Filter;
use crate::spec;
use crate::streams::pump::InputEnd;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is left of a container when its processes are gone.
#[derive(Default)]
pub(super) struct Resources {
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) usage: Option<Arc<Usage>>,
    /// For the processes that come later.
    pub(super) seccomp: Option<Filter>,
    directory: Option<PathBuf>,
    image: Option<Arc<Image>>,
}

/// Makes a container and its waiting process. What was made is in `resources` also when this fails
/// or is given up half way.
pub(super) async fn create(
    shared: &Shared,
    request: &CreateSpec,
    deadline: Deadline,
    resources: &mut Resources,
) -> Result<Waiting> {
    let id = &request.id;
    let spec::Parsed {
        mut container,
        mut process,
        settings,
        device_rules,
        namespace_files,
    } = spec::parse(&request.spec)?;
    process.user_name = spec::user(&request.user)?;
    process.terminal = request.stdio.terminal;
    resources.seccomp.clone_from(&process.seccomp);
    let stdio = Prepared::new(shared, &request.stdio)?;
    let namespaces = open_namespaces(&namespace_files)?;
    let pid_namespace = container
        .join_namespaces
        .iter()
        .zip(&namespaces)
        .find(|(kind, _)| **kind == libc::CLONE_NEWPID)
        .map(|(_, fd)| fd.as_fd());

    let image = shared.backing.image(&request.image_disk, deadline).await?;
    container.image = image.path().to_owned();
    resources.image = Some(image);
    let directory = shared.backing.scratch()?.join(id.as_str());
    container.upper = directory.join("upper");
    container.work = directory.join("work");
    container.mount_point.clone_from(&shared.paths.mount_point);
    let what = || format!("Cannot make the directory of container {id}");
    // Left over from an agent that was killed: its content belongs to nobody.
    delete(&directory).context(what)?;
    resources.directory = Some(directory);
    fs::create_dir_all(&container.work).context(what)?;
    make_upper(&container.image, &container.upper).context(what)?;
    resources.usage = Some(Usage::new(container.upper.clone()));
    shared.prepare_cgroup().await?;
    let cgroup = Arc::new(Cgroup::create(
        &shared.paths.cgroup,
        id.as_str(),
        &settings,
    )?);
    resources.cgroup = Some(cgroup.clone());
    cgroup.restrict_devices(&device_rules)?;

    let new_namespaces = container.new_namespaces;
    let plan = Plan {
        place: Place::Make(Box::new(container)),
        process,
    };
    let birth = Birth {
        namespaces: new_namespaces,
        pid_namespace,
        cgroup: cgroup.directory(),
        fds: namespaces
            .iter()
            .map(AsFd::as_fd)
            .zip(fds::NAMESPACES..)
            .collect(),
        input_end: InputEnd::HalfClose,
    };
    let waiting = launch(shared, &plan, stdio, birth);
    deadline
        .limit(
            || format!("Container {id} is still being prepared"),
            waiting,
        )
        .await?
}

/// Makes one more process in a container.
pub(super) async fn exec(
    shared: &Shared,
    request: &ExecSpec,
    cgroup: &Cgroup,
    container: &OwnedFd,
    init_pid: u32,
    seccomp: Option<Filter>,
) -> Result<Waiting> {
    let mut process = spec::parse_process(&request.process)?;
    process.seccomp = seccomp;
    process.user_name = spec::user(&request.user)?;
    process.terminal = request.stdio.terminal;
    let stdio = Prepared::new(shared, &request.stdio)?;
    let plan = Plan {
        place: Place::Join,
        process,
    };
    let inner = cgroup
        .delegated(init_pid)
        .context(|| "Cannot open the container's cgroup")?;
    let birth = Birth {
        namespaces: 0,
        pid_namespace: Some(container.as_fd()),
        cgroup: inner
            .as_ref()
            .map_or_else(|| cgroup.directory(), AsFd::as_fd),
        fds: vec![(container.as_fd(), fds::CONTAINER)],
        input_end: InputEnd::AnyClose,
    };
    launch(shared, &plan, stdio, birth).await
}

fn open_namespaces(files: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    // The descriptors of a plan are few; there are only so many kinds of namespaces.
    files
        .iter()
        .map(|path| {
            let file = fs::File::open(path);
            let file = file.map_err(|error| {
                Error::Invalid(format!("Cannot open namespace {}: {error}", path.display()))
            })?;
            Ok(file.into())
        })
        .collect()
}

/// The root directory of a container has the mode and owner of the image's.
fn make_upper(image: &Path, upper: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    fs::create_dir(upper)?;
    let metadata = fs::metadata(image)?;
    fs::set_permissions(upper, metadata.permissions())?;
    chown(upper, Some(metadata.uid()), Some(metadata.gid()))
}

impl Resources {
    /// Kills what still runs and removes everything. Goes on after a failure and tells the first.
    pub(super) async fn release(&mut self) -> Result<()> {
        let mut result = Ok(());
        if let Some(cgroup) = self.cgroup.take() {
            result = release_cgroup(&cgroup).await;
        }
        if let Some(directory) = self.directory.take() {
            let deleted = tokio::task::spawn_blocking(move || {
                delete(&directory).context(|| format!("Cannot delete {}", directory.display()))
            });
            let deleted = deleted
                .await
                .unwrap_or_else(|_| Err(Error::Internal("Deleting was cut short".to_owned())));
            result = result.and(deleted);
        }
        // The last container of an image unmounts it.
        self.image = None;
        result
    }
}

async fn release_cgroup(cgroup: &Cgroup) -> Result<()> {
    cgroup.kill()?;
    cgroup.empty().await?;
    cgroup.remove()
}

fn delete(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
