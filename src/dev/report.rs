//! What `petrel dev` prints: where everything is, in the order others rely on.
//!
//! Invariant: `petrel: ready` comes first and every line comes in one write; then one `nbd:` line
//! a volume, one `http:` line a server (server 1 first), one `pid:` line a child.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use super::args::NbdListen;
use super::daemon::{Daemon, Role};
use super::manifest::Addresses;
use crate::url::{encode, encode_path};

/// The facts of a cluster that is ready.
pub struct Facts<'a> {
    pub nbd: &'a NbdListen,
    pub volumes: &'a [String],
    pub addresses: &'a [Addresses],
    pub daemons: &'a [Daemon],
}

impl Facts<'_> {
    pub fn text(&self) -> String {
        let mut text = String::from("petrel: ready\n");
        let mut line = |name: &str, value: &str| {
            writeln!(text, "{name}: {value}").expect("writing to a String cannot fail");
        };
        for volume in self.volumes {
            line("nbd", &nbd_uri(self.nbd, volume));
        }
        for addresses in self.addresses {
            line("http", &http_url(addresses.http));
        }
        for (role, pid) in self.pids() {
            line("pid", &format!("{role} {pid}"));
        }
        text
    }

    /// The same as one object.
    pub fn json(&self) -> Value {
        let volumes: Vec<Value> = self
            .volumes
            .iter()
            .map(|volume| json!({"name": volume, "nbd": nbd_uri(self.nbd, volume)}))
            .collect();
        let pid_of = |wanted: Role| {
            let mut pids = self.pids();
            pids.find_map(|(role, pid)| (role == wanted).then_some(pid))
        };
        let servers: Vec<Value> = self
            .addresses
            .iter()
            .map(|addresses| {
                json!({
                    "id": addresses.id,
                    "http": http_url(addresses.http),
                    "pid": pid_of(Role::Server(addresses.id)),
                })
            })
            .collect();
        json!({
            "ready": true,
            "volumes": volumes,
            "servers": servers,
            "nbd_bridge": {"pid": pid_of(Role::Bridge)},
        })
    }

    fn pids(&self) -> impl Iterator<Item = (Role, u32)> {
        self.daemons.iter().filter_map(|daemon| Some((daemon.role, daemon.pid()?)))
    }
}

/// The NBD URI of a volume, as libnbd, qemu and fio take it.
fn nbd_uri(listen: &NbdListen, volume: &str) -> String {
    let volume = encode(volume);
    match listen {
        NbdListen::Unix(path) => {
            let path = encode_path(&path.to_string_lossy());
            format!("nbd+unix:///{volume}?socket={path}")
        }
        NbdListen::Tcp(address) => format!("nbd://{}/{volume}", reachable(*address)),
    }
}

/// Where a server that listens on `address` is reached from this machine.
pub fn http_url(address: SocketAddr) -> String {
    format!("http://{}", reachable(address))
}

/// An address to connect to: the unspecified one is only for listening.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_in_the_order_others_rely_on() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses =
            [1, 2].map(|id| Addresses { id, data: address(7000 + id), http: address(8000 + id) });
        let facts = Facts {
            nbd: &NbdListen::Unix("/tmp/my dir/nbd.sock".into()),
            volumes: &["vol0".to_owned(), "vol1".to_owned()],
            addresses: &addresses,
            daemons: &[],
        };
        assert_eq!(
            facts.text(),
            "petrel: ready\n\
             nbd: nbd+unix:///vol0?socket=/tmp/my%20dir/nbd.sock\n\
             nbd: nbd+unix:///vol1?socket=/tmp/my%20dir/nbd.sock\n\
             http: http://127.0.0.1:8001\n\
             http: http://127.0.0.1:8002\n"
        );
    }

    #[test]
    fn a_tcp_uri_names_an_address_to_connect_to() {
        let listen = NbdListen::Tcp(SocketAddr::from(([0, 0, 0, 0], 10809)));
        assert_eq!(nbd_uri(&listen, "vol0"), "nbd://127.0.0.1:10809/vol0");
    }
}
