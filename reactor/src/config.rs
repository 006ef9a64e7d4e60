//! Settings of a reactor, read once when it is made.

/// Settings of one [`Reactor`](crate::Reactor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorConfig {
    /// Size of the submission queue, in operations. More operations may be in flight: a full
    /// queue is submitted and refilled.
    pub entries: u32,
    /// How much one receive may take from a socket. Large, because a receive that brings many
    /// requests costs a third of the processor time of one which brings few.
    pub receive_buffer_bytes: usize,
}

impl Default for ReactorConfig {
    fn default() -> ReactorConfig {
        ReactorConfig { entries: 1024, receive_buffer_bytes: 256 << 10 }
    }
}
