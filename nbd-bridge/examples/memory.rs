//! A disk in memory behind the protocol library: the smallest hands it can have.
//!
//! Run it as `cargo run -p nbd-bridge --example memory -- unix:/tmp/m.sock 256` (or
//! `tcp:127.0.0.1:10809`; the size is in MiB) to point foreign clients at the protocol alone,
//! without a cluster behind it. One thread a connection, requests one after the other, and no
//! handshake timeout: what a server needs beyond that is `nbd-bridge` itself.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, RwLock};

use anyhow::{Context, bail};
use nbd_bridge::export::ExportInfo;
use nbd_bridge::handshake::{Handshake, Negotiated, Outcome};
use nbd_bridge::protocol::REQUEST_HEADER_BYTES;
use nbd_bridge::reply::Extent;
use nbd_bridge::transmission::{Parsed, Range, Request, Session, Verdict, parse};

type Disk = Arc<RwLock<Vec<u8>>>;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().context("usage: memory unix:PATH|tcp:HOST:PORT [MIB]")?;
    let mib: usize = arguments.next().map_or(Ok(256), |mib| mib.parse()).context("size in MiB")?;
    let disk: Disk = Arc::new(RwLock::new(vec![0; mib << 20]));
    let mut export = ExportInfo::new("memory", "a disk in memory", u64::try_from(mib << 20)?)?;
    export.can_multi_conn = true;
    let exports = vec![export];
    if let Some(path) = listen.strip_prefix("unix:") {
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {path}"))?;
        for stream in listener.incoming() {
            spawn(stream?, &exports, &disk);
        }
    } else if let Some(address) = listen.strip_prefix("tcp:") {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        for stream in listener.incoming() {
            let stream = stream?;
            stream.set_nodelay(true)?;
            spawn(stream, &exports, &disk);
        }
    } else {
        bail!("'{listen}' is neither unix:PATH nor tcp:HOST:PORT");
    }
    Ok(())
}

fn spawn(stream: impl Read + Write + Send + 'static, exports: &[ExportInfo], disk: &Disk) {
    let (exports, disk) = (exports.to_vec(), Arc::clone(disk));
    std::thread::spawn(move || {
        let mut connection = Connection { stream, inbox: Vec::new(), reply: Vec::new() };
        if let Err(error) = connection.serve(&exports, &disk) {
            eprintln!("memory: {error:#}");
        }
    });
}

struct Connection<S> {
    stream: S,
    inbox: Vec<u8>,
    reply: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    fn serve(&mut self, exports: &[ExportInfo], disk: &Disk) -> anyhow::Result<()> {
        let negotiated = self.haggle(exports)?;
        let session = Session::new(&negotiated);
        loop {
            let header = match parse(&self.inbox) {
                Parsed::NeedMore => {
                    self.receive(REQUEST_HEADER_BYTES)?;
                    continue;
                }
                Parsed::BadMagic => bail!("a request starts with a wrong magic"),
                Parsed::Header(header) => header,
            };
            self.inbox.drain(..REQUEST_HEADER_BYTES);
            match session.judge(&header) {
                Verdict::Serve(request) => self.work(&session, &header, request, disk)?,
                Verdict::Succeed => session.success(header.command, header.cookie, &mut self.reply),
                Verdict::Refuse { error, payload_bytes } => {
                    self.payload(payload_bytes)?;
                    session.failure(header.command, header.cookie, error, &mut self.reply);
                }
                Verdict::Disconnect => return Ok(()),
                Verdict::Drop { payload_bytes } => bail!("a write of {payload_bytes} bytes"),
            }
            self.send()?;
        }
    }

    fn haggle(&mut self, exports: &[ExportInfo]) -> anyhow::Result<Negotiated> {
        let mut handshake = Handshake::new();
        Handshake::greeting(&mut self.reply);
        self.send()?;
        loop {
            let step = handshake.feed(&exports, &self.inbox, &mut self.reply);
            self.inbox.drain(..step.consumed);
            self.send()?;
            match step.outcome {
                Outcome::NeedMore { inbox_bytes } => self.receive(inbox_bytes)?,
                Outcome::Continue => {}
                Outcome::Transmission(negotiated) => return Ok(negotiated),
                Outcome::Close(reason) => return Err(reason.into()),
            }
        }
    }

    fn work(
        &mut self,
        session: &Session,
        header: &nbd_bridge::transmission::RequestHeader,
        request: Request,
        disk: &Disk,
    ) -> anyhow::Result<()> {
        match request {
            Request::Read { range, one_chunk: _ } => {
                session.read_header(header.cookie, range, &mut self.reply);
                let disk = disk.read().expect("no holder of the lock panics");
                self.reply.extend_from_slice(&disk[span(range)?]);
                return Ok(());
            }
            Request::Write { range, fua: _ } => {
                let payload = self.payload(range.length_bytes)?;
                let mut disk = disk.write().expect("no holder of the lock panics");
                disk[span(range)?].copy_from_slice(&payload);
            }
            Request::Trim { range, fua: _ }
            | Request::WriteZeroes { range, fua: _, keep_allocated: _ } => {
                disk.write().expect("no holder of the lock panics")[span(range)?].fill(0);
            }
            Request::BlockStatus { range, one_extent: _ } => {
                let all = Extent { length_bytes: range.length_bytes, flags: 0 };
                session.block_status(header.cookie, &[all], &mut self.reply);
                return Ok(());
            }
            Request::Flush | Request::Cache { range: _ } => {}
        }
        session.success(header.command, header.cookie, &mut self.reply);
        Ok(())
    }

    fn payload(&mut self, bytes: u32) -> anyhow::Result<Vec<u8>> {
        let bytes = usize::try_from(bytes)?;
        if bytes > 0 {
            self.receive(bytes)?;
        }
        Ok(self.inbox.drain(..bytes).collect())
    }

    /// Waits until the inbox holds this many bytes.
    fn receive(&mut self, inbox_bytes: usize) -> anyhow::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        while self.inbox.len() < inbox_bytes {
            let received = self.stream.read(&mut buffer).context("receive")?;
            if received == 0 {
                bail!("the client hung up");
            }
            self.inbox.extend_from_slice(&buffer[..received]);
        }
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.reply).context("send")?;
        self.reply.clear();
        Ok(())
    }
}

fn span(range: Range) -> anyhow::Result<std::ops::Range<usize>> {
    let start = usize::try_from(range.offset_bytes)?;
    Ok(start..start + usize::try_from(range.length_bytes)?)
}
