//! Ports for a development cluster: found, claimed, and kept apart from other clusters'.
//!
//! Invariant: a port in use here is claimed in this network namespace by an abstract unix socket
//! for as long as its supervisor lives, so that two clusters that start at the same moment, or one
//! that starts while another's server is being restarted, never take the same.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::time::{Duration, Instant};

use super::error::DevError;

/// HTTP ports begin here, where `petrel`'s own `--cluster` default points.
pub const HTTP_FIRST: u16 = 8001;
/// Data ports begin here. Both stay below 32768, where the kernel picks ports for connections.
pub const DATA_FIRST: u16 = 7001;
/// Ports end here: below what the kernel hands out.
const PORTS_END: u16 = 32_000;
/// Clusters of up to ten servers lie at round distances.
const STRIDE: u16 = 10;
/// A supervisor killed a moment ago leaves daemons that take up to 5 s to drain and exit.
const REMEMBERED_BUSY_MAX: Duration = Duration::from_secs(8);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Claims held; dropping them frees the ports for other clusters.
#[derive(Debug, Default)]
pub struct Claims {
    held: Vec<UnixListener>,
}

impl Claims {
    /// Claims one address, which must be free now.
    pub fn claim(&mut self, what: &str, address: SocketAddr) -> Result<(), DevError> {
        let claim = try_claim(address).map_err(|source| DevError::PortInUse {
            what: what.to_owned(),
            address: address.to_string(),
            source,
        })?;
        self.held.push(claim);
        Ok(())
    }

    /// Claims an address the cluster had before: whoever has it may be on its way out.
    pub fn claim_again(&mut self, what: &str, address: SocketAddr) -> Result<(), DevError> {
        let deadline = Instant::now() + REMEMBERED_BUSY_MAX;
        loop {
            match self.claim(what, address) {
                Err(busy @ DevError::PortInUse { .. }) if Instant::now() >= deadline => {
                    return Err(busy);
                }
                Err(DevError::PortInUse { .. }) => std::thread::sleep(POLL_INTERVAL),
                done => return done,
            }
        }
    }

    /// Takes over what another set holds.
    pub fn absorb(&mut self, other: Self) {
        self.held.extend(other.held);
    }

    /// Finds and claims `count` consecutive free ports on `ip`, the first at `first` or a
    /// multiple of the stride above it.
    pub fn claim_run(
        &mut self,
        what: &'static str,
        ip: IpAddr,
        first: u16,
        count: u16,
    ) -> Result<Vec<SocketAddr>, DevError> {
        let stride = count.next_multiple_of(STRIDE);
        let mut start = first;
        while start < PORTS_END.saturating_sub(count) {
            let run: Vec<SocketAddr> =
                (start..start + count).map(|port| SocketAddr::new(ip, port)).collect();
            let claims: io::Result<Vec<UnixListener>> =
                run.iter().map(|&address| try_claim(address)).collect();
            if let Ok(claims) = claims {
                self.held.extend(claims);
                return Ok(run);
            }
            start += stride;
        }
        Err(DevError::NoFreePorts { what, servers: count })
    }
}

/// Claims `address` among development clusters, then looks whether anybody else listens there.
fn try_claim(address: SocketAddr) -> io::Result<UnixListener> {
    let name = format!("petrel-dev/port/{}", address.port());
    let claim = UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(name)?)?;
    TcpListener::bind(address)?;
    Ok(claim)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn two_clusters_get_different_runs_of_ports() {
        let (mut one, mut other) = (Claims::default(), Claims::default());
        let a = one.claim_run("http", LOOPBACK, 21_001, 3).expect("free ports");
        let b = other.claim_run("http", LOOPBACK, 21_001, 3).expect("free ports");
        assert!(a.iter().all(|address| !b.contains(address)), "{a:?} {b:?}");
        for run in [a, b] {
            assert_eq!(run[1].port(), run[0].port() + 1);
            assert_eq!(run[2].port(), run[0].port() + 2);
        }
    }

    #[test]
    fn a_port_someone_listens_on_is_named_and_passed_over() {
        let mut claims = Claims::default();
        let taken = claims.claim_run("http", LOOPBACK, 22_001, 1).expect("a free port")[0];
        drop(claims);
        let _listener = TcpListener::bind(taken).expect("free");
        let mut claims = Claims::default();
        let refused = claims.claim("server 1's http", taken).expect_err("in use");
        assert!(refused.to_string().contains(&taken.to_string()), "{refused}");
        let run = claims.claim_run("http", LOOPBACK, taken.port(), 2).expect("free ports");
        assert!(!run.contains(&taken));
    }
}
