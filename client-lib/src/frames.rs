//! Frames: messages out of a stream's bytes, and into them.
//!
//! Invariant: a payload goes from the socket into the buffer that disk, peers or the caller get,
//! and from there into sockets; it is copied in user space only where it came with other bytes
//! in one receive. An error means that the stream is of no more use.

use reactor::{Buffer, Reactor, SendPart, StreamId};
use smt::wire::{self, Encoded, HEADER_BYTES, Header, Message, WireError};

use crate::data::Data;

/// Fields longer than this are received into a buffer of their own, not into the inbox.
const INBOX_META_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
enum Wanted {
    #[default]
    Header,
    /// The fields come into a buffer of their own.
    Meta { header: Header, bytes: [u8; HEADER_BYTES] },
    /// The payload comes into a buffer of its own.
    Payload { header: Header, meta: Vec<u8> },
}

/// Where one stream stands in its current message.
#[derive(Debug, Default)]
pub struct FrameReader {
    wanted: Wanted,
}

fn length(bytes: u32) -> usize {
    usize::try_from(bytes).expect("a u32 fits a usize")
}

impl FrameReader {
    /// The next whole message of the stream's inbox, if there is one. Call again until there is
    /// none; after [`reactor::Event::Payload`], go on with [`Self::filled`].
    ///
    /// # Errors
    /// The bytes are no message of ours.
    pub fn next(
        &mut self,
        reactor: &mut Reactor,
        stream: StreamId,
    ) -> Result<Option<Message<Data>>, WireError> {
        if !matches!(self.wanted, Wanted::Header) {
            return Ok(None);
        }
        let inbox = reactor.inbox(stream);
        let Some(bytes) = inbox.first_chunk::<HEADER_BYTES>().copied() else {
            return Ok(None);
        };
        let header = Header::parse(&bytes)?;
        let meta_bytes = length(header.meta_bytes);
        if meta_bytes > INBOX_META_BYTES_MAX {
            reactor.consume(stream, HEADER_BYTES);
            self.wanted = Wanted::Meta { header, bytes };
            return match reactor.fill(stream, meta_bytes) {
                Some(buffer) => self.filled(reactor, stream, buffer),
                None => Ok(None),
            };
        }
        let Some(meta) = inbox.get(HEADER_BYTES..HEADER_BYTES + meta_bytes) else {
            return Ok(None);
        };
        header.verify(&bytes, meta)?;
        if header.payload_bytes == 0 {
            let message = wire::decode(&header, meta, None)?;
            reactor.consume(stream, HEADER_BYTES + meta_bytes);
            return Ok(Some(message));
        }
        let meta = meta.to_vec();
        reactor.consume(stream, HEADER_BYTES + meta_bytes);
        self.want_payload(reactor, stream, header, meta)
    }

    /// The buffer that a message waited for has come.
    ///
    /// # Errors
    /// The bytes are no message of ours.
    pub fn filled(
        &mut self,
        reactor: &mut Reactor,
        stream: StreamId,
        buffer: Buffer,
    ) -> Result<Option<Message<Data>>, WireError> {
        match std::mem::take(&mut self.wanted) {
            Wanted::Header => Err(WireError::Malformed { what: "payload nobody waited for" }),
            Wanted::Meta { header, bytes } => {
                header.verify(&bytes, &buffer)?;
                if header.payload_bytes == 0 {
                    return wire::decode(&header, &buffer, None).map(Some);
                }
                let meta = buffer.to_vec();
                self.want_payload(reactor, stream, header, meta)
            }
            Wanted::Payload { header, meta } => {
                let data = Data::new(buffer.share());
                let data = data.ok_or(WireError::Malformed { what: "payload length" })?;
                wire::decode(&header, &meta, Some(data)).map(Some)
            }
        }
    }

    fn want_payload(
        &mut self,
        reactor: &mut Reactor,
        stream: StreamId,
        header: Header,
        meta: Vec<u8>,
    ) -> Result<Option<Message<Data>>, WireError> {
        let payload_bytes = length(header.payload_bytes);
        self.wanted = Wanted::Payload { header, meta };
        match reactor.fill(stream, payload_bytes) {
            Some(buffer) => self.filled(reactor, stream, buffer),
            None => Ok(None),
        }
    }
}

/// Queues `message` on `stream`: the payload leaves from the buffer it is in.
pub fn send(reactor: &mut Reactor, stream: StreamId, message: Message<Data>) {
    let Encoded { head, payload } = wire::encode(message);
    reactor.send(stream, SendPart::Bytes(head));
    if let Some(data) = payload {
        reactor.send(stream, SendPart::Shared(data.into_buffer()));
    }
}
