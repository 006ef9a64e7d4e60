//! TCP retransmits of the *host*, from `/proc/net/snmp` and `/proc/net/netstat`.
//!
//! Our own sockets' numbers would be better (`getsockopt(TCP_INFO)`), but that needs `unsafe`,
//! which lives in `reactor` only; until `reactor` offers it, what else runs on the host is in
//! these numbers too. They belong to the network namespace of the process.
//!
//! Invariant: columns are found by name, never by place, since kernels add and move them.

/// Counters since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpCounters {
    pub segments_sent: u64,
    pub segments_retransmitted: u64,
    /// Retransmission timers that ran out: worse than a fast retransmit. 0 where the kernel does
    /// not say.
    pub timeouts: u64,
}

/// Reads the texts of `/proc/net/snmp` and `/proc/net/netstat`; `None` when the first has no
/// TCP counters we understand.
#[must_use]
pub fn parse(snmp: &str, netstat: &str) -> Option<TcpCounters> {
    Some(TcpCounters {
        segments_sent: counter(snmp, "Tcp:", "OutSegs")?,
        segments_retransmitted: counter(snmp, "Tcp:", "RetransSegs")?,
        timeouts: counter(netstat, "TcpExt:", "TCPTimeouts").unwrap_or(0),
    })
}

/// Both files are pairs of lines with one prefix: the names, then the values.
fn counter(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next()?, lines.next()?);
    names
        .split_ascii_whitespace()
        .zip(values.split_ascii_whitespace())
        .find(|(each, _)| *each == name)
        .and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 4958
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 21 2 0 9 0 4958 3159 42 0 11 0
Udp: InDatagrams NoPorts
Udp: 8 0
";
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent TCPTimeouts TCPLostRetransmit
TcpExt: 0 7 3
IpExt: InNoRoutes InOctets
IpExt: 0 991
";

    #[test]
    fn counters_are_found_by_name() {
        assert_eq!(
            parse(SNMP, NETSTAT),
            Some(TcpCounters { segments_sent: 3_159, segments_retransmitted: 42, timeouts: 7 })
        );
    }

    #[test]
    fn a_kernel_that_does_not_say_is_not_misread() {
        assert_eq!(parse("", NETSTAT), None);
        assert_eq!(parse("Tcp: OutSegs RetransSegs\nTcp: 5\n", ""), None);
        let without = parse(SNMP, "").expect("netstat is not needed");
        assert_eq!(without.timeouts, 0);
    }
}
