//! The figures of a cgroup (Documentation/admin-guide/cgroup-v2.rst), from its files. Both sides
//! read them: the agent those of a container, the daemon those of a pod.

use crate::agent::{ContainerStats, CpuStats, IoStats, MemoryStats, Pressure, PressureTimes};
use protobuf::MessageField;

/// The figures of a cgroup whose files `read` gives, without names and times. What a file does not
/// have is absent or 0; a cgroup that is gone has no figures.
pub fn figures(read: impl Fn(&str) -> Option<String>) -> ContainerStats {
    let read: Read<'_> = &read;
    let mut stats = ContainerStats::new();
    stats.cpu = MessageField::from_option(cpu(read));
    stats.memory = MessageField::from_option(memory(read));
    stats.pids = number(read, "pids.current");
    stats.pids_limit = number(read, "pids.max").unwrap_or(0);
    stats.io = read("io.stat").map_or_else(Vec::new, |text| io(&text));
    stats.io_pressure = pressure_of(read, "io.pressure");
    stats
}

type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

fn cpu(read: Read<'_>) -> Option<CpuStats> {
    let text = read("cpu.stat")?;
    let mut cpu = CpuStats::new();
    cpu.usage_us = field(&text, "usage_usec");
    cpu.user_us = field(&text, "user_usec");
    cpu.system_us = field(&text, "system_usec");
    cpu.periods = field(&text, "nr_periods");
    cpu.throttled_periods = field(&text, "nr_throttled");
    cpu.throttled_us = field(&text, "throttled_usec");
    cpu.pressure = pressure_of(read, "cpu.pressure");
    Some(cpu)
}

fn memory(read: Read<'_>) -> Option<MemoryStats> {
    let usage = number(read, "memory.current")?;
    let text = read("memory.stat")?;
    let events = read("memory.events").unwrap_or_default();
    let mut memory = MemoryStats::new();
    memory.usage_bytes = usage;
    memory.working_set_bytes = usage.saturating_sub(field(&text, "inactive_file"));
    memory.rss_bytes = field(&text, "anon");
    memory.page_faults = field(&text, "pgfault");
    memory.major_page_faults = field(&text, "pgmajfault");
    memory.limit_bytes = number(read, "memory.max").unwrap_or(0);
    memory.peak_bytes = number(read, "memory.peak");
    memory.swap_usage_bytes = number(read, "memory.swap.current");
    memory.swap_limit_bytes = number(read, "memory.swap.max").unwrap_or(0);
    memory.oom_kills = field(&events, "oom_kill");
    memory.limit_hits = field(&events, "max");
    memory.file_bytes = field(&text, "file");
    memory.mapped_file_bytes = field(&text, "file_mapped");
    memory.kernel_bytes = field(&text, "kernel");
    memory.active_file_bytes = field(&text, "active_file");
    memory.inactive_file_bytes = field(&text, "inactive_file");
    memory.reserved_bytes = number(read, "memory.low").unwrap_or(0);
    memory.pressure = pressure_of(read, "memory.pressure");
    Some(memory)
}

/// A file with one number; `None` for `max`.
fn number(read: Read<'_>, file: &str) -> Option<u64> {
    read(file)?.trim().parse().ok()
}

fn pressure_of(read: Read<'_>, file: &str) -> MessageField<Pressure> {
    MessageField::from_option(read(file).map(|text| pressure(&text)))
}

/// The number behind a name, as in `memory.stat`; 0 where the name is not.
pub fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// `io.stat`: `major:minor key=value ...`
fn io(text: &str) -> Vec<IoStats> {
    let disks = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        let mut io = IoStats::new();
        (io.major, io.minor) = (major.parse().ok()?, minor.parse().ok()?);
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    });
    disks.collect()
}

/// `*.pressure`: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::new();
    for line in text.lines() {
        let Some((kind, rest)) = line.split_once(' ') else {
            continue;
        };
        let mut times = PressureTimes::new();
        for (key, value) in rest.split(' ').filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => times.avg10 = average(),
                "avg60" => times.avg60 = average(),
                "avg300" => times.avg300 = average(),
                "total" => times.total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = MessageField::some(times),
            "full" => pressure.full = MessageField::some(times),
            _ => {}
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::{figures, io, pressure};

    #[test]
    fn disks_are_lines() {
        let text = "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:16 \nx\n";
        let disks = io(text);
        assert_eq!(disks.len(), 2);
        assert_eq!((disks[0].major, disks[0].read_bytes), (254, 4096));
        assert_eq!((disks[0].writes, disks[1].minor), (2, 16));
    }

    #[test]
    fn pressure_has_averages_and_a_total() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=45\n";
        let times = pressure(text);
        assert!((times.some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!((times.some.total_us, times.full.total_us), (123, 45));
        assert!(pressure("").some.is_none());
    }

    #[test]
    fn what_is_missing_is_absent() {
        let none = figures(|_| None);
        assert!(none.cpu.is_none() && none.memory.is_none() && none.pids.is_none());
        let some = figures(|file| match file {
            "cpu.stat" => Some("usage_usec 5\nuser_usec 3\n".to_owned()),
            "memory.current" => Some("100\n".to_owned()),
            "memory.stat" => Some("anon 7\nfile 60\ninactive_file 40\nkernel 9\n".to_owned()),
            "memory.events" => Some("low 0\nmax 2\noom 1\noom_kill 1\n".to_owned()),
            "memory.max" => Some("max\n".to_owned()),
            _ => None,
        });
        assert_eq!((some.cpu.usage_us, some.cpu.user_us), (5, 3));
        let memory = &some.memory;
        assert_eq!((memory.working_set_bytes, memory.limit_bytes), (60, 0));
        assert_eq!((memory.rss_bytes, memory.kernel_bytes), (7, 9));
        assert_eq!((memory.limit_hits, memory.oom_kills), (2, 1));
        assert!(memory.swap_usage_bytes.is_none());
    }
}
