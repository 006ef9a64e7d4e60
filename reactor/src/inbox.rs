//! Inbox: what a stream has received and its owner has not consumed, in one piece.
//!
//! Invariant: the kernel writes only beyond `filled`. While it may, the inbox belongs to the
//! operation in flight, wrapped in a [`Receiving`] that neither moves nor frees its memory, yet
//! lets the bytes before `filled` be read and consumed.
#![expect(unsafe_code, reason = "received bytes are read while the kernel writes behind them")]

use crate::ALIGNMENT_BYTES;
use crate::buffer::Buffer;
use crate::fill::Fill;

/// How much one stream may pile up. An owner that neither consumes nor pauses is not served more
/// until it does; a message larger than this has to be taken with `fill`.
const INBOX_BYTES_MAX: usize = 64 << 20;

pub(crate) struct Inbox {
    /// None before the first receive and after a large message has been consumed.
    memory: Option<Buffer>,
    /// First byte not consumed.
    start: usize,
    /// First byte not received.
    filled: usize,
    /// How large the memory is when nothing asks for more.
    standard_bytes: usize,
}

impl Inbox {
    pub(crate) fn new(standard_bytes: usize) -> Inbox {
        Inbox {
            memory: None,
            start: 0,
            filled: 0,
            standard_bytes: standard_bytes.max(ALIGNMENT_BYTES),
        }
    }

    /// Received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(memory) = &self.memory else {
            return &[];
        };
        let start = memory.address().wrapping_add(self.start);
        // SAFETY: start <= filled <= the buffer's length (held by `consume` and `arrived`), all
        // of a buffer is initialised, and the kernel writes only beyond `filled`.
        unsafe { std::slice::from_raw_parts(start, self.filled - self.start) }
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        let held = self.filled - self.start;
        assert!(bytes <= held, "consumed {bytes} bytes of {held}");
        self.start += bytes;
    }

    /// Makes the next receive worth its while: moves what is there to the front, or into a larger
    /// memory when it nearly fills this one. False when there is no room and none is granted.
    fn make_room(&mut self) -> bool {
        if self.start == self.filled {
            self.start = 0;
            self.filled = 0;
            if (self.memory.as_ref()).is_some_and(|memory| memory.len() > self.standard_bytes) {
                self.memory = None;
            }
        }
        let memory = (self.memory).get_or_insert_with(|| Buffer::recycled(self.standard_bytes));
        if memory.len() - self.filled < memory.len() / 4 && self.start > 0 {
            memory.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.start = 0;
        }
        if memory.len() - self.filled < memory.len() / 8 && memory.len() < INBOX_BYTES_MAX {
            let mut larger = Buffer::recycled(memory.len() * 2);
            let held = self.filled - self.start;
            larger[..held].copy_from_slice(&memory[self.start..self.filled]);
            *memory = larger;
            self.start = 0;
            self.filled = held;
        }
        self.filled < memory.len()
    }

    /// Moves bytes into a payload, as many as both have.
    pub(crate) fn feed(&mut self, fill: &mut Fill) {
        let taken = fill.feed(self.bytes());
        self.consume(taken);
    }

    pub(crate) fn clear(&mut self) {
        self.start = self.filled;
    }

    fn target(&mut self) -> (*mut u8, usize) {
        let memory = (self.memory.as_ref()).expect("room was made before the receive");
        (memory.address().wrapping_add(self.filled), memory.len() - self.filled)
    }

    fn arrived(&mut self, bytes: usize) {
        let room = self.memory.as_ref().map_or(0, Buffer::len) - self.filled;
        assert!(bytes <= room, "the kernel wrote beyond the inbox");
        self.filled += bytes;
    }
}

/// What a receive in flight owns: the inbox, and the payload it goes into instead if there is one.
pub(crate) struct Receiving {
    inbox: Inbox,
    fill: Option<Fill>,
}

impl Receiving {
    /// Makes ready to receive, or gives the inbox back if it is full and may not grow.
    pub(crate) fn new(mut inbox: Inbox, fill: Option<Fill>) -> Result<Receiving, Inbox> {
        if fill.is_some() {
            assert!(inbox.bytes().is_empty(), "a payload comes after the inbox");
            assert!(fill.as_ref().is_some_and(|fill| fill.missing() > 0));
        } else if !inbox.make_room() {
            return Err(inbox);
        }
        Ok(Receiving { inbox, fill })
    }

    /// Whether this goes into a payload rather than the inbox.
    pub(crate) fn is_fill(&self) -> bool {
        self.fill.is_some()
    }

    /// Where the kernel may write.
    pub(crate) fn target(&mut self) -> (*mut u8, usize) {
        match &mut self.fill {
            Some(fill) => fill.target(),
            None => self.inbox.target(),
        }
    }

    pub(crate) fn inbox_bytes(&self) -> &[u8] {
        self.inbox.bytes()
    }

    pub(crate) fn inbox_consume(&mut self, bytes: usize) {
        self.inbox.consume(bytes);
    }

    pub(crate) fn inbox_feed(&mut self, fill: &mut Fill) {
        self.inbox.feed(fill);
    }

    /// Ends the receive, which brought `bytes`.
    pub(crate) fn landed(mut self, bytes: usize) -> (Inbox, Option<Fill>) {
        match &mut self.fill {
            Some(fill) => fill.arrived(bytes),
            None => self.inbox.arrived(bytes),
        }
        (self.inbox, self.fill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what the kernel does.
    fn receive(inbox: Inbox, bytes: &[u8]) -> Inbox {
        let mut receiving = Receiving::new(inbox, None).map_err(drop).expect("room");
        let (target, room) = receiving.target();
        let count = bytes.len().min(room);
        // SAFETY: `target` has `room` bytes which only we write.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, count) };
        let (inbox, fill) = receiving.landed(count);
        assert!(fill.is_none());
        if count < bytes.len() {
            return receive(inbox, &bytes[count..]);
        }
        inbox
    }

    #[test]
    fn bytes_keep_their_order_through_growth_and_compaction() {
        let mut inbox = Inbox::new(4096);
        let stream: Vec<u8> = (0..=250).cycle().take(300_000).collect();
        let mut received = 0;
        let mut consumed = 0;
        for round in 0.. {
            let more = (round * 731 % 9000 + 1).min(stream.len() - received);
            inbox = receive(inbox, &stream[received..received + more]);
            received += more;
            assert_eq!(inbox.bytes(), &stream[consumed..received]);
            let done = (round * 977 % 9000).min(received - consumed);
            inbox.consume(done);
            consumed += done;
            if received == stream.len() {
                break;
            }
        }
        inbox.clear();
        assert!(inbox.bytes().is_empty());
    }

    #[test]
    fn memory_grown_for_a_large_message_is_given_back_after_it() {
        let mut inbox = receive(Inbox::new(4096), &[7; 100_000]);
        inbox.consume(100_000);
        let inbox = receive(inbox, &[8]);
        assert_eq!(inbox.memory.expect("in use").len(), 4096);
    }

    #[test]
    fn an_inbox_which_nobody_empties_stops_growing() {
        let mut inbox = Inbox::new(INBOX_BYTES_MAX / 4);
        loop {
            match Receiving::new(inbox, None) {
                Ok(mut receiving) => {
                    let (_, room) = receiving.target();
                    (inbox, _) = receiving.landed(room);
                }
                Err(full) => {
                    assert_eq!(full.bytes().len(), INBOX_BYTES_MAX);
                    return;
                }
            }
        }
    }
}
