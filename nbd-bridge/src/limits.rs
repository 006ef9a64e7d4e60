//! Bounds on what one client may ask of us, and why each has its value.
//!
//! Invariant: a client that stays inside what the protocol document calls portable never meets
//! one of these.

/// The longest option a client may send and have read. Names and queries are at most 4 KiB each,
/// so this holds a name and fifteen queries of the longest kind.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// An option longer than [`OPTION_BYTES_MAX`] is refused and skipped up to here; beyond, the
/// length is more likely a client out of step than a long option, and the connection closes.
pub const OPTION_BYTES_SKIPPED_MAX: u32 = 1 << 20;

/// Options one client may send. qemu and libnbd need about six; nbdkit stops at 32.
pub const OPTIONS_MAX: u32 = 64;

/// How long the hands should let a handshake take, as qemu-nbd does.
pub const HANDSHAKE_MS_MAX: u64 = 10_000;

/// The longest string of the protocol, fixed by its document.
pub const STRING_BYTES_MAX: usize = 4096;

/// The largest READ or WRITE that we serve: what the protocol document tells clients to assume.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// A WRITE larger than we serve is read, thrown away and answered with EINVAL up to here, which
/// is the largest that libnbd sends; beyond, the connection is dropped.
pub const PAYLOAD_BYTES_SKIPPED_MAX: u32 = 64 << 20;

const _: () = assert!(OPTION_BYTES_MAX < OPTION_BYTES_SKIPPED_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX <= PAYLOAD_BYTES_SKIPPED_MAX);
const _: () = assert!(STRING_BYTES_MAX < 1 << 16, "an error message's length is 16 bits");
