//! `linux.resources.blockIO`: weights and limits of disks.

use super::resources::set;
use super::{limited, refuse};
use crate::cgroup::Setting;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

/// Adds the files `io.weight` and `io.max`.
pub(super) fn convert(block_io: &LinuxBlockIo, settings: &mut Vec<Setting>) -> Result<()> {
    // Version 2 has none: processes and groups are not side by side.
    let leaf = block_io.leaf_weight().is_some_and(|weight| weight != 0);
    refuse("linux.resources.blockIO.leafWeight", leaf)?;
    if let Some(weight) = block_io.weight().filter(|weight| *weight != 0) {
        set(settings, "io.weight", self::weight(weight)?.to_string());
    }
    for device in limited(
        block_io.weight_device(),
        "linux.resources.blockIO.weightDevice",
    )? {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let number = number(device.major(), device.minor())?;
            set(
                settings,
                "io.weight",
                format!("{number} {}", self::weight(weight)?),
            );
        }
    }
    let mut throttle = |list: &Option<Vec<LinuxThrottleDevice>>, key: &str| -> Result<()> {
        for device in limited(list, "devices in linux.resources.blockIO")? {
            let number = number(device.major(), device.minor())?;
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            set(settings, "io.max", format!("{number} {key}={rate}"));
        }
        Ok(())
    };
    throttle(block_io.throttle_read_bps_device(), "rbps")?;
    throttle(block_io.throttle_write_bps_device(), "wbps")?;
    throttle(block_io.throttle_read_iops_device(), "riops")?;
    throttle(block_io.throttle_write_iops_device(), "wiops")
}

/// 10..=1000 of version 1 onto 1..=10000 of version 2, as runc does.
fn weight(weight: u16) -> Result<u64> {
    if !(10..=1000).contains(&weight) {
        return Err(Error::Invalid(format!(
            "linux.resources.blockIO has weight {weight}; it must be from 10 to 1000"
        )));
    }
    Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
}

fn number(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::Invalid(format!(
            "linux.resources.blockIO has the device number {major}:{minor}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::convert;
    use serde_json::json;

    #[test]
    fn weights_and_limits_become_lines() {
        let block_io = json!({
            "weight": 500,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 1000}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}],
        });
        let mut settings = Vec::new();
        convert(&serde_json::from_value(block_io).unwrap(), &mut settings).unwrap();
        let lines: Vec<_> = settings
            .iter()
            .map(|one| format!("{} {}", one.file, one.value))
            .collect();
        assert_eq!(
            lines,
            [
                "io.weight 4950",
                "io.weight 8:0 1",
                "io.max 8:16 rbps=1000",
                "io.max 8:16 wiops=max"
            ]
        );
        for wrong in [json!({"weight": 5}), json!({"leafWeight": 10})] {
            let block_io = serde_json::from_value(wrong).unwrap();
            assert!(convert(&block_io, &mut settings).is_err());
        }
    }
}
