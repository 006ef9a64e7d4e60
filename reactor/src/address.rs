//! Address: where a socket listens or connects to, and how a listening socket is made.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections the kernel holds for us until we accept them. A daemon that stalls for a moment
/// must not turn away its whole cluster reconnecting.
const BACKLOG: i32 = 1024;

/// Longest path a unix socket address holds: `sun_path` less its ending NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where to listen or to connect: `tcp:HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Neither of the two forms.
    #[error("address {text:?} is neither tcp:HOST:PORT nor unix:PATH")]
    Form {
        /// What was given.
        text: String,
    },
    /// The host and port mean nothing to the resolver.
    #[error("resolve {text:?} to an IP address and port")]
    Resolve {
        /// What was given.
        text: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The resolver knows the host, but no address of it.
    #[error("{text:?} resolves to no IP address")]
    Nowhere {
        /// What was given.
        text: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp:{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// A host name is resolved here and now, which may block.
    fn from_str(text: &str) -> Result<Address, AddressError> {
        let form = || AddressError::Form { text: text.to_owned() };
        match text.split_once(':').ok_or_else(form)? {
            ("unix", path) if !path.is_empty() => Ok(Address::Unix(PathBuf::from(path))),
            ("tcp", host) => {
                if let Ok(address) = host.parse() {
                    return Ok(Address::Tcp(address));
                }
                let resolved = host
                    .to_socket_addrs()
                    .map_err(|source| AddressError::Resolve { text: text.to_owned(), source })?;
                resolved
                    .into_iter()
                    .next()
                    .map(Address::Tcp)
                    .ok_or_else(|| AddressError::Nowhere { text: text.to_owned() })
            }
            _ => Err(form()),
        }
    }
}

impl Address {
    pub(crate) fn domain(&self) -> Domain {
        match self {
            Address::Tcp(address) => Domain::for_address(*address),
            Address::Unix(_) => Domain::UNIX,
        }
    }

    pub(crate) fn to_sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Address::Tcp(address) => Ok(SockAddr::from(*address)),
            Address::Unix(path) => {
                let length_bytes = path.as_os_str().as_bytes().len();
                if length_bytes > UNIX_PATH_BYTES_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "unix socket path {} is {length_bytes} bytes long; the kernel takes {UNIX_PATH_BYTES_MAX}",
                            path.display()
                        ),
                    ));
                }
                SockAddr::unix(path)
            }
        }
    }
}

/// Makes a listening socket at `address`, and says where it really listens: with the port the
/// kernel chose where 0 was asked for. A unix socket file which nobody listens on any more is
/// replaced; one that is alive, or another file, is left alone and is the error `AddrInUse`.
pub fn bind(address: &Address) -> io::Result<(OwnedFd, Address)> {
    let sock_addr = address.to_sock_addr()?;
    // Type::STREAM alone would leave the socket open in child processes.
    let socket = Socket::new(address.domain(), Type::STREAM.cloexec(), None)?;
    match address {
        Address::Tcp(_) => socket.set_reuse_address(true)?,
        Address::Unix(path) => remove_if_stale(path, &sock_addr)?,
    }
    socket.bind(&sock_addr)?;
    socket.listen(BACKLOG)?;
    let actual = match address {
        Address::Tcp(_) => Address::Tcp(socket.local_addr()?.as_socket().ok_or_else(|| {
            io::Error::other(format!("{address} is bound to something not an IP address"))
        })?),
        Address::Unix(path) => Address::Unix(path.clone()),
    };
    Ok((OwnedFd::from(socket), actual))
}

fn remove_if_stale(path: &Path, sock_addr: &SockAddr) -> io::Result<()> {
    let in_use = |what: &str| {
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{} {what}", path.display())))
    };
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return in_use("exists and is not a socket"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    // Not blocking: a listener whose backlog is full must not hang us.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    match probe.connect(sock_addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => in_use("has a listener"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_prints() {
        for text in ["tcp:127.0.0.1:7700", "tcp:[::1]:80", "unix:/run/petrel.sock"] {
            let address: Address = text.parse().expect("a good address");
            assert_eq!(address.to_string(), text);
        }
        let named: Address = "tcp:localhost:7700".parse().expect("localhost resolves");
        let Address::Tcp(resolved) = named else {
            panic!("tcp gave {named:?}");
        };
        assert!(resolved.ip().is_loopback());
        assert_eq!(resolved.port(), 7700);
    }

    #[test]
    fn a_text_of_neither_form_is_refused() {
        for text in ["", "unix:", "unix", "127.0.0.1:80", "udp:127.0.0.1:80", "tcp:127.0.0.1"] {
            text.parse::<Address>().expect_err(text);
        }
    }

    #[test]
    fn a_unix_path_too_long_for_the_kernel_is_said_to_be_so() {
        let address = Address::Unix(PathBuf::from("/".repeat(UNIX_PATH_BYTES_MAX + 1)));
        let error = bind(&address).expect_err("108 bytes do not fit");
        assert!(error.to_string().contains("108 bytes long"), "{error}");
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("socket");
        let address = Address::Unix(path.clone());
        let (first, _) = bind(&address).expect("the path is free");
        let error = bind(&address).expect_err("somebody listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "a closed socket leaves its file");
        let (_second, _) = bind(&address).expect("nobody listens any more");

        let file = directory.path().join("file");
        std::fs::write(&file, "precious").expect("temporary directory is writable");
        let error = bind(&Address::Unix(file.clone())).expect_err("not a socket");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
    }

    #[test]
    fn the_port_chosen_by_the_kernel_is_reported() {
        let (_socket, actual) =
            bind(&"tcp:127.0.0.1:0".parse().expect("good")).expect("a free port");
        let Address::Tcp(actual) = actual else {
            panic!("tcp gave {actual:?}");
        };
        assert_ne!(actual.port(), 0);
    }
}
