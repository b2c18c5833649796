//! What went over the pod's network interfaces: `/proc/net/dev`, proc_pid_net(5).

use bulkhead_agent_api::agent::InterfaceCounters;
use std::fs;

/// Every interface of the guest with its counters.
pub fn interfaces() -> Vec<InterfaceCounters> {
    parse(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

/// Two lines of titles, then `name: ` and 16 numbers a line: bytes, packets, errs, drop, fifo,
/// frame, compressed, multicast received, and as many transmitted.
fn parse(text: &str) -> Vec<InterfaceCounters> {
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers.as_slice()
        else {
            return None;
        };
        let mut interface = InterfaceCounters::new();
        interface.name = name.trim().to_owned();
        interface.rx_bytes = *rx_bytes;
        interface.rx_packets = *rx_packets;
        interface.rx_errors = *rx_errors;
        interface.rx_dropped = *rx_dropped;
        interface.tx_bytes = *tx_bytes;
        interface.tx_packets = *tx_packets;
        interface.tx_errors = *tx_errors;
        interface.tx_dropped = *tx_dropped;
        Some(interface)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::{interfaces, parse};

    #[test]
    fn titles_are_no_interfaces() {
        let text = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
            eth0: 7 6 5 4 3 2 1 0 17 16 15 14 13 12 11 10\n";
        let found = parse(text);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0"]);
        let eth = &found[1];
        assert_eq!(
            (eth.rx_bytes, eth.rx_packets, eth.rx_errors, eth.rx_dropped),
            (7, 6, 5, 4)
        );
        assert_eq!(
            (eth.tx_bytes, eth.tx_packets, eth.tx_errors, eth.tx_dropped),
            (17, 16, 15, 14)
        );
        assert!(interfaces().iter().any(|one| one.name == "lo"));
    }
}
