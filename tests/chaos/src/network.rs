//! Network: a network namespace for each server, on one bridge with us, and what cuts them apart.
//!
//! Invariant: all of it lies in namespaces of this run (see `room`), and goes with them. Packets
//! are dropped at a server, never at the bridge, so each direction between two ends is a rule of
//! its own, and cuts that overlap are healed one by one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Data and HTTP listen here where every server has an address of its own.
const DATA_PORT: u16 = 7000;
const HTTP_PORT: u16 = 8000;
/// Without, ports are looked for from here up to where the kernel takes its own from.
const PORTS_FIRST: u16 = 20_000;
const PORTS_END: u16 = 32_000;

/// One end of a path: a server, or the clients and whoever asks over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Server(u8),
    Client,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Server(id) => write!(f, "{id}"),
            End::Client => f.write_str("client"),
        }
    }
}

/// Packets from one end to the other do not arrive.
pub type Cut = (End, End);

#[derive(Clone, Debug)]
pub enum Network {
    Namespaces,
    /// Everybody on loopback; the ports of server 1 first, data and HTTP in turn.
    Loopback {
        ports: Vec<u16>,
    },
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program} {}", arguments.join(" ")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(())
}

fn address(end: End) -> Ipv4Addr {
    match end {
        End::Server(id) => Ipv4Addr::new(10, 77, 0, id),
        End::Client => Ipv4Addr::new(10, 77, 0, 254),
    }
}

fn namespace(id: u8) -> String {
    format!("server-{id}")
}

impl Network {
    /// Lays the network out, in the namespaces this process is in.
    ///
    /// # Errors
    /// What the kernel or its tools refused.
    pub fn lay(servers: u8) -> Result<Network> {
        // Names of namespaces live here; ours are to be nobody else's.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "petrel0", "type", "bridge"])?;
        let ours = format!("{}/24", address(End::Client));
        run("ip", &["addr", "add", &ours, "dev", "petrel0"])?;
        run("ip", &["link", "set", "petrel0", "up"])?;
        for id in 1..=servers {
            let (name, port) = (namespace(id), format!("port-{id}"));
            let theirs = format!("{}/24", address(End::Server(id)));
            run("ip", &["netns", "add", &name])?;
            let veth =
                ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name];
            run("ip", &veth)?;
            run("ip", &["link", "set", &port, "master", "petrel0", "up"])?;
            run("ip", &["-n", &name, "addr", "add", &theirs, "dev", "eth0"])?;
            run("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(Network::Namespaces)
    }

    /// Ports on loopback that nobody listens on now.
    ///
    /// # Errors
    /// There are too few.
    pub fn loopback(servers: u8) -> Result<Network> {
        let wanted = usize::from(servers) * 2;
        let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        // Another run starts elsewhere.
        let skip = usize::try_from(std::process::id() % 1000).expect("below 1000") * 10;
        let ports: Vec<u16> =
            (PORTS_FIRST..PORTS_END).skip(skip).filter(is_free).take(wanted).collect();
        if ports.len() < wanted {
            bail!("no {wanted} free ports between {PORTS_FIRST} and {PORTS_END}");
        }
        Ok(Network::Loopback { ports })
    }

    #[must_use]
    pub fn can_cut(&self) -> bool {
        match self {
            Network::Namespaces => true,
            Network::Loopback { .. } => false,
        }
    }

    fn listener(&self, id: u8, which: usize) -> String {
        match self {
            Network::Namespaces => {
                let port = [DATA_PORT, HTTP_PORT][which];
                format!("{}:{port}", IpAddr::V4(address(End::Server(id))))
            }
            Network::Loopback { ports } => {
                let at = (usize::from(id) - 1) * 2 + which;
                format!("{}:{}", Ipv4Addr::LOCALHOST, ports[at])
            }
        }
    }

    /// Where a server listens for data.
    #[must_use]
    pub fn data(&self, id: u8) -> String {
        self.listener(id, 0)
    }

    /// Where a server listens for HTTP.
    #[must_use]
    pub fn http(&self, id: u8) -> String {
        self.listener(id, 1)
    }

    /// A command that runs `program` where that server lives, as the same process.
    #[must_use]
    pub fn command(&self, id: u8, program: &std::path::Path) -> Command {
        match self {
            Network::Namespaces => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace(id)]).arg(program);
                command
            }
            Network::Loopback { .. } => Command::new(program),
        }
    }

    /// Drops what goes from the one end to the other.
    ///
    /// # Errors
    /// What iptables says.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        Self::rule("-I", cut)
    }

    /// Takes back one [`Self::cut`].
    ///
    /// # Errors
    /// What iptables says.
    pub fn heal(&self, cut: Cut) -> Result<()> {
        Self::rule("-D", cut)
    }

    fn rule(verb: &str, (from, to): Cut) -> Result<()> {
        let (at, chain, match_on, other) = match (from, to) {
            (_, End::Server(to)) => (to, "INPUT", "-s", from),
            (End::Server(from), End::Client) => (from, "OUTPUT", "-d", to),
            (End::Client, End::Client) => bail!("the client is not cut from itself"),
        };
        let (name, other) = (namespace(at), address(other).to_string());
        let rule = ["iptables", "-w", verb, chain, match_on, &other, "-j", "DROP"];
        run("ip", &[&["netns", "exec", &name], &rule[..]].concat())
    }
}
