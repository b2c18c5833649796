//! The figures of a cgroup (Documentation/admin-guide/cgroup-v2.rst). What a file does not have is
//! absent or 0; a cgroup that is gone has no figures.

use super::{Cgroup, field};
use bulkhead_agent_api::agent::{
    ContainerStats, CpuStats, IoStats, MemoryStats, Pressure, PressureTimes,
};
use protobuf::MessageField;
use rustix::fs::{Mode, OFlags};

/// The longest file that is read; `io.stat` has a line for each disk.
const MAX_FILE: usize = 64 * 1024;

impl Cgroup {
    /// Its figures, without names and times.
    pub fn stats(&self) -> ContainerStats {
        let mut stats = ContainerStats::new();
        stats.cpu = MessageField::from_option(self.cpu());
        stats.memory = MessageField::from_option(self.memory());
        stats.pids = self.number("pids.current");
        stats.pids_limit = self.number("pids.max").unwrap_or(0);
        stats.io = self.read("io.stat").map_or_else(Vec::new, |text| io(&text));
        stats.io_pressure = self.pressure("io.pressure");
        stats
    }

    fn cpu(&self) -> Option<CpuStats> {
        let text = self.read("cpu.stat")?;
        let mut cpu = CpuStats::new();
        cpu.usage_us = field(&text, "usage_usec");
        cpu.user_us = field(&text, "user_usec");
        cpu.system_us = field(&text, "system_usec");
        cpu.periods = field(&text, "nr_periods");
        cpu.throttled_periods = field(&text, "nr_throttled");
        cpu.throttled_us = field(&text, "throttled_usec");
        cpu.pressure = self.pressure("cpu.pressure");
        Some(cpu)
    }

    fn memory(&self) -> Option<MemoryStats> {
        let usage = self.number("memory.current")?;
        let text = self.read("memory.stat")?;
        let mut memory = MemoryStats::new();
        memory.usage_bytes = usage;
        memory.working_set_bytes = usage.saturating_sub(field(&text, "inactive_file"));
        memory.rss_bytes = field(&text, "anon");
        memory.page_faults = field(&text, "pgfault");
        memory.major_page_faults = field(&text, "pgmajfault");
        memory.limit_bytes = self.number("memory.max").unwrap_or(0);
        memory.peak_bytes = self.number("memory.peak");
        memory.swap_usage_bytes = self.number("memory.swap.current");
        memory.swap_limit_bytes = self.number("memory.swap.max").unwrap_or(0);
        memory.oom_kills = self.oom_kills();
        memory.pressure = self.pressure("memory.pressure");
        Some(memory)
    }

    /// A file with one number; `None` for `max`.
    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    fn pressure(&self, file: &str) -> MessageField<Pressure> {
        MessageField::from_option(self.read(file).map(|text| pressure(&text)))
    }

    fn read(&self, file: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, file, flags, Mode::empty()).ok()?;
        let mut text = Vec::new();
        let file = std::fs::File::from(file);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE as u64), &mut text)
            .ok()?;
        String::from_utf8(text).ok()
    }
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
    use super::{io, pressure};

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
}
