//! Id mappings: of the container's user namespace and of id-mapped mounts.

use crate::init::plan::{IdMap, IdMaps, Mount};
use crate::{Error, Result};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

/// The most ranges of a mapping, as the kernel has it (user_namespaces(7)).
const MAX_RANGES: usize = 340;
/// The most user namespaces of a container: its own and those of its id-mapped mounts.
const MAX_NAMESPACES: usize = 8;

/// Checks a pair of mappings; none is an empty one.
pub(super) fn id_maps(
    uids: &Option<Vec<LinuxIdMapping>>,
    gids: &Option<Vec<LinuxIdMapping>>,
) -> Result<IdMaps> {
    let maps = IdMaps {
        uids: ranges(uids, "uidMappings")?,
        gids: ranges(gids, "gidMappings")?,
    };
    if maps.uids.is_empty() != maps.gids.is_empty() {
        return Err(Error::Invalid(
            "uidMappings and gidMappings must both be there, or neither".to_owned(),
        ));
    }
    Ok(maps)
}

fn ranges(list: &Option<Vec<LinuxIdMapping>>, what: &str) -> Result<Vec<IdMap>> {
    let list = list.as_deref().unwrap_or_default();
    if list.len() > MAX_RANGES {
        return Err(Error::Invalid(format!(
            "{what} has more than {MAX_RANGES} ranges"
        )));
    }
    list.iter()
        .map(|map| {
            let map = IdMap {
                inside: map.container_id(),
                outside: map.host_id(),
                count: map.size(),
            };
            // The largest number means "none" to the kernel.
            let fits = |first: u32| first.checked_add(map.count).is_some();
            if map.count == 0 || !fits(map.inside) || !fits(map.outside) {
                return Err(Error::Invalid(format!(
                    "{what} has a range that is empty or too long"
                )));
            }
            Ok(map)
        })
        .collect()
}

/// The mappings of the container's user namespace; empty when it has none.
pub(super) fn of_container(linux: &Linux) -> Result<IdMaps> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let asked = namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let maps = id_maps(linux.uid_mappings(), linux.gid_mappings())?;
    match (asked, maps.is_empty()) {
        (true, true) => Err(Error::Invalid(
            "A user namespace needs linux.uidMappings and linux.gidMappings".to_owned(),
        )),
        (false, false) => Err(Error::Invalid(
            "linux.uidMappings need a user namespace in linux.namespaces".to_owned(),
        )),
        _ => Ok(maps),
    }
}

/// Every mapping that a container needs a user namespace for, each once.
pub(super) fn all(container: &IdMaps, mounts: &[Mount]) -> Result<Vec<IdMaps>> {
    let mut all = Vec::new();
    let of_mounts = mounts.iter().filter_map(|mount| mount.ids.as_ref());
    for maps in std::iter::once(container).chain(of_mounts.map(|(maps, _)| maps)) {
        if !maps.is_empty() && !all.contains(maps) {
            all.push(maps.clone());
        }
    }
    if all.len() > MAX_NAMESPACES {
        return Err(Error::Invalid(format!(
            "The spec has more than {MAX_NAMESPACES} different id mappings"
        )));
    }
    Ok(all)
}
