//! Serving: requests of one client, from the socket to the volume and back.
//!
//! Invariant: no more than 64 MiB and 1,024 requests of a client are held at once; beyond, its
//! socket is not read. A request that has come whole is answered exactly once while its client is
//! there.

use client_lib::{Request as VolumeRequest, VolumeError, VolumeHandle};
use nbd_bridge::limits::PAYLOAD_BYTES_MAX;
use nbd_bridge::protocol::{Command, Errno, REQUEST_HEADER_BYTES};
use nbd_bridge::reply::{Cookie, Extent};
use nbd_bridge::transmission::{Parsed, Range, Request, RequestHeader, Session, Verdict, parse};
use reactor::{Buffer, SendPart, StreamId};

use super::connection::{Connection, Phase};
use super::{Bridge, Outcome};

/// Bytes of requests that are worked on, and replies that wait to leave, for one client.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Requests that are worked on for one client.
const HELD_REQUESTS_MAX: usize = 1024;
const _: () = assert!(HELD_BYTES_MAX as u64 >= PAYLOAD_BYTES_MAX as u64);

/// A client that has chosen.
pub(super) struct Serving {
    session: Session,
    volume: VolumeHandle,
    awaited: Awaited,
}

/// What comes next from the client.
enum Awaited {
    Header,
    /// The payload of a write, into a buffer of its own.
    Payload {
        header: RequestHeader,
        range: Range,
    },
    /// The rest of a payload nobody wants; then `header` is refused.
    Refused {
        header: RequestHeader,
        error: Errno,
        bytes: usize,
    },
}

/// A request on its way.
pub(super) struct InFlight {
    stream: StreamId,
    command: Command,
    cookie: Cookie,
    /// Of a read: what it returns.
    range: Option<Range>,
    bytes: usize,
}

fn size(length_bytes: u32) -> usize {
    usize::try_from(length_bytes).expect("a u32 fits a usize")
}

fn errno(error: &VolumeError, command: Command) -> Errno {
    match error {
        VolumeError::Io => Errno::Io,
        // Inside when it was judged: the volume has shrunk since the client chose it.
        VolumeError::OutOfRange { .. } => match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpc,
            Command::Read
            | Command::Disconnect
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::BlockStatus
            | Command::Unknown(_) => Errno::Inval,
        },
        VolumeError::ReadOnly => Errno::Perm,
        VolumeError::Invalid => Errno::Io,
        VolumeError::Fenced
        | VolumeError::Attached { .. }
        | VolumeError::Refused { .. }
        | VolumeError::Gone
        | VolumeError::Unknown { .. }
        | VolumeError::OpenTimeout { .. }
        | VolumeError::Stopped => Errno::Shutdown,
    }
}

impl Serving {
    pub fn new(session: Session, volume: VolumeHandle) -> Serving {
        Serving { session, volume, awaited: Awaited::Header }
    }
}

impl Connection {
    /// The volume it has chosen.
    pub(super) fn volume(&self) -> Option<VolumeHandle> {
        match &self.phase {
            Phase::Serving(serving) => Some(serving.volume),
            Phase::Handshake(_) => None,
        }
    }

    fn serving(&mut self) -> Option<&mut Serving> {
        match &mut self.phase {
            Phase::Serving(serving) => Some(serving),
            Phase::Handshake(_) => None,
        }
    }

    fn is_full(&self, queued: usize) -> bool {
        self.requests >= HELD_REQUESTS_MAX || self.bytes + queued >= HELD_BYTES_MAX
    }
}

impl Bridge {
    /// Takes the requests in a client's inbox, as many as may be held.
    pub(super) fn serve(&mut self, stream: StreamId) {
        loop {
            let queued = self.reactor.queued_bytes(stream);
            let Some(connection) = self.connections.get_mut(&stream) else {
                return;
            };
            let is_full = connection.is_full(queued);
            if connection.is_leaving {
                return;
            }
            let Some(serving) = connection.serving() else {
                return;
            };
            match &mut serving.awaited {
                Awaited::Payload { .. } => return,
                Awaited::Refused { header, error, bytes } => {
                    let here = self.reactor.inbox(stream).len().min(*bytes);
                    self.reactor.consume(stream, here);
                    *bytes -= here;
                    if *bytes > 0 {
                        return;
                    }
                    let mut reply = Vec::new();
                    serving.session.failure(header.command, header.cookie, *error, &mut reply);
                    serving.awaited = Awaited::Header;
                    self.reactor.send(stream, SendPart::Bytes(reply));
                }
                Awaited::Header if is_full => {
                    if !connection.is_paused {
                        connection.is_paused = true;
                        self.reactor.pause_receiving(stream);
                    }
                    return;
                }
                Awaited::Header => {
                    if !self.take_header(stream) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes one request header; false when there is none, or nothing is to follow it now.
    fn take_header(&mut self, stream: StreamId) -> bool {
        let header = match parse(self.reactor.inbox(stream)) {
            Parsed::NeedMore => return false,
            Parsed::BadMagic => {
                tracing::debug!("dropping a client: it sends something else than requests");
                self.hang_up(stream);
                return false;
            }
            Parsed::Header(header) => header,
        };
        self.reactor.consume(stream, REQUEST_HEADER_BYTES);
        let Some(serving) = self.connections.get_mut(&stream).and_then(Connection::serving) else {
            return false;
        };
        match serving.session.judge(&header) {
            Verdict::Serve(request) => self.begin(stream, header, request),
            Verdict::Succeed => {
                let mut reply = Vec::new();
                serving.session.success(header.command, header.cookie, &mut reply);
                self.reactor.send(stream, SendPart::Bytes(reply));
                true
            }
            Verdict::Refuse { error, payload_bytes } => {
                let bytes = size(payload_bytes);
                serving.awaited = Awaited::Refused { header, error, bytes };
                true
            }
            Verdict::Disconnect => {
                self.dismiss(stream);
                false
            }
            Verdict::Drop { payload_bytes } => {
                tracing::debug!(payload_bytes, "dropping a client: such a write is not even read");
                self.hang_up(stream);
                false
            }
        }
    }

    /// Begins a request; false when its payload is still to come.
    fn begin(&mut self, stream: StreamId, header: RequestHeader, request: Request) -> bool {
        let whole = |range: Range| (range.offset_bytes, u64::from(range.length_bytes));
        match request {
            Request::Write { range, fua: _ } => {
                // Every write is durable when it is acknowledged, so FUA asks for nothing more.
                match self.reactor.fill(stream, size(range.length_bytes)) {
                    Some(buffer) => self.write(stream, header, range, buffer),
                    None => {
                        let connection = self.connections.get_mut(&stream);
                        if let Some(serving) = connection.and_then(Connection::serving) {
                            serving.awaited = Awaited::Payload { header, range };
                        }
                        return false;
                    }
                }
            }
            Request::Read { range, one_chunk: _ } => {
                let (offset_bytes, length_bytes) = whole(range);
                let read = VolumeRequest::Read { offset_bytes, length_bytes };
                self.submit(stream, header, Some(range), size(range.length_bytes), read);
            }
            Request::Flush => self.submit(stream, header, None, 0, VolumeRequest::Flush),
            Request::Trim { range, fua: _ } => {
                let (offset_bytes, length_bytes) = whole(range);
                let discard = VolumeRequest::Discard { offset_bytes, length_bytes };
                self.submit(stream, header, None, 0, discard);
            }
            Request::WriteZeroes { range, fua: _, keep_allocated: _ } => {
                // Space is never given back while the volume lives, so it is kept anyway.
                let (offset_bytes, length_bytes) = whole(range);
                let zero = VolumeRequest::Zero { offset_bytes, length_bytes };
                self.submit(stream, header, None, 0, zero);
            }
            Request::Cache { range: _ } => {
                self.reply_at_once(stream, |session, reply| {
                    session.success(header.command, header.cookie, reply);
                });
            }
            Request::BlockStatus { range, one_extent: _ } => {
                // The space of a volume is reserved, and what is zero in it is not told.
                let extent = Extent { length_bytes: range.length_bytes, flags: 0 };
                self.reply_at_once(stream, |session, reply| {
                    session.block_status(header.cookie, &[extent], reply);
                });
            }
        }
        true
    }

    fn reply_at_once(&mut self, stream: StreamId, encode: impl Fn(&Session, &mut Vec<u8>)) {
        let Some(serving) = self.connections.get_mut(&stream).and_then(Connection::serving) else {
            return;
        };
        let mut reply = Vec::new();
        encode(&serving.session, &mut reply);
        self.reactor.send(stream, SendPart::Bytes(reply));
    }

    /// The payload of a write has come.
    pub(super) fn on_payload(&mut self, stream: StreamId, buffer: Buffer) {
        let Some(serving) = self.connections.get_mut(&stream).and_then(Connection::serving) else {
            return;
        };
        match std::mem::replace(&mut serving.awaited, Awaited::Header) {
            Awaited::Payload { header, range } => self.write(stream, header, range, buffer),
            Awaited::Header | Awaited::Refused { .. } => unreachable!("no payload was asked for"),
        }
    }

    fn write(&mut self, stream: StreamId, header: RequestHeader, range: Range, buffer: Buffer) {
        let bytes = buffer.len();
        let offset_bytes = range.offset_bytes;
        let write = VolumeRequest::Write { offset_bytes, data: buffer.share() };
        self.submit(stream, header, None, bytes, write);
    }

    fn submit(
        &mut self,
        stream: StreamId,
        header: RequestHeader,
        range: Option<Range>,
        bytes: usize,
        request: VolumeRequest,
    ) {
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        connection.requests += 1;
        connection.bytes += bytes;
        let Some(serving) = connection.serving() else {
            return;
        };
        let volume = serving.volume;
        let RequestHeader { command, cookie, .. } = header;
        self.last_request += 1;
        let in_flight = InFlight { stream, command, cookie, range, bytes };
        self.requests.insert(self.last_request, in_flight);
        self.driver.submit(&mut self.reactor, volume, self.last_request, request);
    }

    /// Sends the answer to a request that has ended, if its client is still there.
    pub(super) fn reply(&mut self, request: InFlight, result: Outcome) {
        let InFlight { stream, command, cookie, range, bytes } = request;
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        connection.requests -= 1;
        connection.bytes -= bytes;
        let mut head = Vec::new();
        let (requests, is_leaving) = (connection.requests, connection.is_leaving);
        let Some(Serving { session, .. }) = connection.serving() else {
            return;
        };
        match (&result, range) {
            (Ok(_), Some(range)) => session.read_header(cookie, range, &mut head),
            (Ok(_), None) => session.success(command, cookie, &mut head),
            (Err(error), _) => {
                // A fence has a word of its own in the log, and may end a thousand of them.
                if *error != VolumeError::Fenced {
                    tracing::warn!(%error, ?command, "answering a request with an error");
                }
                session.failure(command, cookie, errno(error, command), &mut head);
            }
        }
        self.reactor.send(stream, SendPart::Bytes(head));
        for piece in result.into_iter().flatten() {
            self.reactor.send(stream, SendPart::Shared(piece));
        }
        if is_leaving && requests == 0 {
            self.say_goodbye(stream);
        } else {
            self.read_again(stream);
        }
    }

    /// Goes on reading from a client that was held back, if it may be.
    pub(super) fn read_again(&mut self, stream: StreamId) {
        let queued = self.reactor.queued_bytes(stream);
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        if connection.is_paused && !connection.is_full(queued) {
            connection.is_paused = false;
            self.reactor.resume_receiving(stream);
            self.serve(stream);
        }
    }

    fn hang_up(&mut self, stream: StreamId) {
        self.connections.remove(&stream);
        self.reactor.close(stream);
    }
}
