//! Args: the command line, and what is made of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use reactor::Address;

use super::error::BridgeError;

/// What a unix socket address of the kernel holds, less its ending NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Serves volumes of a Petrel cluster to NBD clients.
///
/// A volume is attached, for this bridge alone, when the first NBD client chooses it. While another
/// bridge has it, this one stands by: its NBD clients are let in and their requests wait, until the
/// other one gives the volume back or has been silent for 10 s. With --take-over nobody waits. A
/// volume that no NBD client uses any more is given back after a while.
///
/// A bridge that loses a volume to another answers that volume's requests with ESHUTDOWN, drops its
/// clients and takes no new ones. It ends with exit code 3 when no export is left.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// HTTP address of a server of the cluster; several, separated by commas, are tried in turn
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        required = true,
        env = "PETREL_CLUSTER"
    )]
    pub cluster: Vec<String>,

    /// Where to listen: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub listen: OsString,

    /// A volume to export; may be given again. Without it, every volume is
    #[arg(long, value_name = "VOLUME")]
    pub export: Vec<String>,

    /// Refuse everything that changes data. Volumes are then not attached: they may be read
    /// whoever has them
    #[arg(long)]
    pub read_only: bool,

    /// Take volumes from whoever has them, though he lives. He is fenced: nothing he sends after
    /// that takes effect
    #[arg(long, conflicts_with = "read_only")]
    pub take_over: bool,

    /// Give a volume back when no NBD client has used it for this long, such as 30s or 5m. Without
    /// it a volume is kept: a client that was cut off and comes back would not learn that somebody
    /// else has written meanwhile
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub give_back_after: Option<Duration>,

    /// Allow listening beyond this machine, though nothing is encrypted or authenticated
    #[arg(long)]
    pub insecure: bool,

    /// Stop, as on SIGTERM, when standard input ends
    #[arg(long)]
    pub exit_on_stdin_close: bool,
}

/// The command line, judged.
#[derive(Debug)]
pub struct Settings {
    pub urls: Vec<String>,
    pub listen: Address,
    /// The only volumes exported; all, if empty.
    pub exports: Vec<String>,
    pub read_only: bool,
    pub take_over: bool,
    /// Without a client.
    pub give_back_after: Duration,
    pub exit_on_stdin_close: bool,
}

impl Settings {
    /// # Errors
    /// When something of it cannot be, or must not be without `--insecure`.
    pub fn judge(args: Args) -> Result<Settings, BridgeError> {
        let Args {
            cluster,
            listen,
            export,
            read_only,
            take_over,
            give_back_after,
            insecure,
            exit_on_stdin_close,
        } = args;
        let listen = address(&listen)?;
        if let Address::Tcp(address) = &listen
            && !address.ip().is_loopback()
            && !insecure
        {
            return Err(BridgeError::NotLoopback { address: listen });
        }
        let urls = cluster.into_iter().filter(|url| !url.is_empty()).collect();
        Ok(Settings {
            urls,
            listen,
            exports: export,
            read_only,
            take_over,
            give_back_after: give_back_after.unwrap_or(Duration::MAX),
            exit_on_stdin_close,
        })
    }
}

fn address(text: &OsStr) -> Result<Address, BridgeError> {
    // A path need not be UTF-8.
    if let Some(path) = text.as_bytes().strip_prefix(b"unix:") {
        if path.len() > UNIX_PATH_BYTES_MAX {
            let path = PathBuf::from(OsStr::from_bytes(path));
            return Err(BridgeError::SocketPath { bytes: path.as_os_str().len(), path });
        }
        if !path.is_empty() {
            return Ok(Address::Unix(PathBuf::from(OsStr::from_bytes(path))));
        }
    }
    Ok(text.to_string_lossy().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(listen: &str, more: &[&str]) -> Result<Settings, BridgeError> {
        let line = ["nbd-bridge", "--cluster", "http://a:1,http://b:2", "--listen", listen];
        let args = Args::try_parse_from(line.iter().chain(more)).expect("a good command line");
        Settings::judge(args)
    }

    #[test]
    fn a_command_line_is_taken_apart() {
        let settings = judge("unix:/run/nbd.sock", &["--export", "a", "--export", "b"]);
        let settings = settings.expect("nothing is wrong with it");
        assert_eq!(settings.urls, ["http://a:1", "http://b:2"]);
        assert_eq!(settings.exports, ["a", "b"]);
        assert_eq!(settings.listen, Address::Unix(PathBuf::from("/run/nbd.sock")));
    }

    #[test]
    fn who_only_reads_takes_nothing_over() {
        assert!(judge("unix:/a", &["--take-over"]).expect("nothing is wrong with it").take_over);
        let line = ["nbd-bridge", "--cluster", "http://a:1", "--listen", "unix:/a"];
        let both = line.into_iter().chain(["--take-over", "--read-only"]);
        Args::try_parse_from(both).expect_err("it makes no sense");
    }

    #[test]
    fn listening_beyond_this_machine_has_to_be_asked_for() {
        let error = judge("tcp:0.0.0.0:10809", &[]).expect_err("nothing is encrypted");
        assert_eq!(error.exit_code(), 2);
        judge("tcp:0.0.0.0:10809", &["--insecure"]).expect("it was asked for");
        judge("tcp:127.0.0.1:10809", &[]).expect("loopback");
    }

    #[test]
    fn a_socket_path_too_long_for_the_kernel_is_a_usage_error() {
        let path = format!("unix:/{}", "x".repeat(107));
        let error = judge(&path, &[]).expect_err("108 bytes");
        assert!(error.to_string().contains("108 bytes"), "{error}");
        assert_eq!(error.exit_code(), 2);
        judge(&path[..path.len() - 1], &[]).expect("107 bytes");
    }

    #[test]
    fn an_address_of_no_kind_is_a_usage_error() {
        for listen in ["", "unix:", "127.0.0.1:1", "tcp:127.0.0.1"] {
            assert_eq!(judge(listen, &[]).expect_err(listen).exit_code(), 2);
        }
    }
}
