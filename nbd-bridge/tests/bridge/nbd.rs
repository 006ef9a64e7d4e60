//! A raw NBD client, and the bridge's process. Numbers are spelled out, not imported.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::fake::Fake;

pub struct Bridge {
    child: Child,
    pub socket: PathBuf,
    _directory: tempfile::TempDir,
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-bridge"));
    command.env_remove("PETREL_CLUSTER").env("RUST_LOG", "debug").stdin(Stdio::piped());
    command
}

impl Bridge {
    /// A bridge that takes connections on a unix socket of its own.
    pub fn start(fake: &Fake, more: &[&str]) -> Bridge {
        Bridge::start_with(fake, more, Stdio::inherit())
    }

    pub fn start_with(fake: &Fake, more: &[&str], stderr: Stdio) -> Bridge {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("nbd.sock");
        let child = command()
            .args(["--cluster", &fake.url(), "--listen"])
            .arg(format!("unix:{}", socket.display()))
            .args(more)
            .stderr(stderr)
            .spawn()
            .expect("the bridge is built");
        let bridge = Bridge { child, socket, _directory: directory };
        wait_until("the bridge's socket", || bridge.socket.exists());
        bridge
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it logs to, if that was piped.
    pub fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("it is piped")
    }

    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it lives");
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_for_end(&mut self.child, limit)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_none()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn wait_for_end(child: &mut Child, limit: Duration) -> ExitStatus {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("it is ours") {
            return status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("the bridge did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Anything bytes go over.
pub trait Wire: Read + Write {
    fn half_close(&self);
}

impl Wire for UnixStream {
    fn half_close(&self) {
        drop(self.shutdown(std::net::Shutdown::Write));
    }
}

impl Wire for TcpStream {
    fn half_close(&self) {
        drop(self.shutdown(std::net::Shutdown::Write));
    }
}

pub struct Client<W: Wire = UnixStream> {
    pub wire: W,
    pub size: u64,
    pub flags: u16,
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;

/// What came back for one cookie.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

pub fn greet<W: Wire>(wire: &mut W) {
    let mut greeting = [0; 18];
    wire.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    wire.write_all(&3_u32.to_be_bytes()).expect("it listens");
}

pub fn option<W: Wire>(wire: &mut W, option: u32, data: &[u8]) {
    let mut message = b"IHAVEOPT".to_vec();
    message.extend(option.to_be_bytes());
    message.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    message.extend(data);
    wire.write_all(&message).expect("it listens");
}

pub fn option_reply<W: Wire>(wire: &mut W) -> (u32, Vec<u8>) {
    let mut head = [0; 20];
    wire.read_exact(&mut head).expect("a reply to the option");
    let kind = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
    let length = u32::from_be_bytes(head[16..].try_into().expect("four bytes"));
    let mut payload = vec![0; usize::try_from(length).expect("small")];
    wire.read_exact(&mut payload).expect("what was promised");
    (kind, payload)
}

pub fn go_data(name: &str) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 0]);
    data
}

pub fn connect(path: &Path) -> UnixStream {
    // Its socket is there a moment before it listens.
    let began = Instant::now();
    let wire = loop {
        match UnixStream::connect(path) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused
                    && began.elapsed() < Duration::from_secs(10) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => break other.expect("the bridge listens"),
        }
    };
    wire.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket takes a time-out");
    wire
}

impl Client {
    pub fn open(path: &Path, name: &str) -> Client {
        Client::go(connect(path), name)
    }
}

impl<W: Wire> Client<W> {
    /// Structured replies, then GO.
    pub fn go(mut wire: W, name: &str) -> Client<W> {
        greet(&mut wire);
        option(&mut wire, 8, &[]);
        assert_eq!(option_reply(&mut wire).0, 1, "structured replies are ours");
        option(&mut wire, 7, &go_data(name));
        let (mut size, mut flags) = (0, 0);
        loop {
            let (kind, payload) = option_reply(&mut wire);
            match kind {
                1 => return Client { wire, size, flags },
                3 if payload[..2] == [0, 0] => {
                    size = u64::from_be_bytes(payload[2..10].try_into().expect("eight bytes"));
                    flags = u16::from_be_bytes(payload[10..12].try_into().expect("two bytes"));
                }
                3 => {}
                other => panic!("GO {name}: {other:#x} {}", String::from_utf8_lossy(&payload)),
            }
        }
    }

    pub fn send(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: usize) {
        let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
        message.extend(flags.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(u32::try_from(length).expect("32 bits").to_be_bytes());
        self.wire.write_all(&message).expect("it listens");
    }

    pub fn send_write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        self.send(0, WRITE, cookie, offset, data.len());
        self.wire.write_all(data).expect("it listens");
    }

    /// The next whole reply, simple or in chunks.
    pub fn receive(&mut self) -> Reply {
        let (mut error, mut data) = (0, Vec::new());
        loop {
            let mut magic = [0; 4];
            self.wire.read_exact(&mut magic).expect("a reply");
            match u32::from_be_bytes(magic) {
                0x6744_6698 => {
                    let mut rest = [0; 12];
                    self.wire.read_exact(&mut rest).expect("a whole reply");
                    let error = u32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
                    let cookie = u64::from_be_bytes(rest[4..].try_into().expect("eight bytes"));
                    return Reply { cookie, error, data };
                }
                0x668e_33ef => {
                    let mut rest = [0; 16];
                    self.wire.read_exact(&mut rest).expect("a whole chunk");
                    let kind = u16::from_be_bytes(rest[2..4].try_into().expect("two bytes"));
                    let cookie = u64::from_be_bytes(rest[4..12].try_into().expect("eight bytes"));
                    let length = u32::from_be_bytes(rest[12..].try_into().expect("four bytes"));
                    let mut payload = vec![0; usize::try_from(length).expect("small")];
                    self.wire.read_exact(&mut payload).expect("a whole chunk");
                    match kind {
                        0 => {}
                        1 => data.extend(&payload[8..]),
                        0x8001 => {
                            let code = payload[..4].try_into().expect("four bytes");
                            error = u32::from_be_bytes(code);
                        }
                        other => panic!("a chunk of kind {other:#x}"),
                    }
                    if rest[1] & 1 == 1 {
                        return Reply { cookie, error, data };
                    }
                }
                other => panic!("a reply starts with {other:#x}"),
            }
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.send_write(77, offset, data);
        self.receive().error
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Reply {
        self.send(0, READ, 78, offset, length);
        self.receive()
    }

    pub fn ask(&mut self, flags: u16, command: u16, offset: u64, length: usize) -> u32 {
        self.send(flags, command, 79, offset, length);
        self.receive().error
    }

    /// Whether the server closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.wire.read(&mut [0; 1]), Ok(0))
    }
}
