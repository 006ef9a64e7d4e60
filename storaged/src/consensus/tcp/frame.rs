//! Frames: `[u32 LE body length][u64 LE xxh3-64 of the body][body]`, the body being a
//! `[u64 LE number]` that an answer repeats from its request, then the message.
//!
//! Invariant: no memory is reserved on a peer's word; a body grows as its bytes arrive.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use xxhash_rust::xxh3::xxh3_64;

/// The longest body. Far above anything sent (1 MiB of entries or snapshot): a longer one is no
/// frame of ours.
pub const FRAME_BYTES_MAX: u32 = 64 << 20;

const NUMBER_BYTES: usize = 8;
const PREFIX_BYTES: usize = 12;

/// What a body reserves before its bytes are there.
const RESERVE_BYTES: usize = 64 << 10;

/// A frame for `message`, ready to be written.
///
/// # Errors
/// `InvalidInput` when the message is too long.
pub(super) fn encode(number: u64, message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(message.len() + NUMBER_BYTES)
        .ok()
        .filter(|length| *length <= FRAME_BYTES_MAX)
        .ok_or_else(|| {
            let why =
                format!("a message of {} bytes, at most {FRAME_BYTES_MAX} fit", message.len());
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + NUMBER_BYTES + message.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&[0; 8]);
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(message);
    let (prefix, body) = frame.split_at_mut(PREFIX_BYTES);
    prefix[4..].copy_from_slice(&xxh3_64(body).to_le_bytes());
    Ok(frame)
}

/// Reads one frame: its number and message, or `None` when the peer closed between two frames.
///
/// # Errors
/// `InvalidData` for a frame that is none of ours or damaged, else what the stream reports.
/// After an error the stream is of no more use.
pub(super) async fn read<R: AsyncRead + Unpin>(
    stream: &mut R,
) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut prefix = [0; PREFIX_BYTES];
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..]).await?;
    let [l0, l1, l2, l3, sum @ ..] = prefix;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length > FRAME_BYTES_MAX {
        return Err(invalid(format!(
            "a frame of {length} bytes, at most {FRAME_BYTES_MAX} are taken"
        )));
    }
    let expected = usize::try_from(length).expect("32 bits fit a length in memory");
    let mut body = Vec::with_capacity(expected.min(RESERVE_BYTES));
    stream.take(u64::from(length)).read_to_end(&mut body).await?;
    if body.len() < expected {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if xxh3_64(&body) != u64::from_le_bytes(sum) {
        return Err(invalid("a frame that does not match its checksum".into()));
    }
    let Some((number, message)) = body.split_first_chunk::<NUMBER_BYTES>() else {
        return Err(invalid(format!("a frame of {length} bytes holds no number")));
    };
    let number = u64::from_le_bytes(*number);
    Ok(Some((number, message.to_vec())))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_bytes(bytes: &[u8]) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut stream = bytes;
        read(&mut stream).await
    }

    #[tokio::test]
    async fn a_frame_reads_back_and_the_end_between_frames_is_no_error() {
        let frame = encode(7, b"message").expect("it is short");
        let (number, message) = read_bytes(&frame).await.expect("it reads").expect("it is there");
        assert_eq!((number, message.as_slice()), (7, b"message".as_slice()));
        assert!(read_bytes(&[]).await.expect("an end").is_none());
    }

    #[tokio::test]
    async fn every_flipped_bit_and_every_cut_is_refused() {
        let frame = encode(7, b"message").expect("it is short");
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read_bytes(&bad).await.is_err(), "bit {bit}");
        }
        for length in 1..frame.len() {
            assert!(read_bytes(&frame[..length]).await.is_err(), "cut at {length}");
        }
    }

    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_refused_before_its_body_is_read() {
        let mut prefix = (FRAME_BYTES_MAX + 1).to_le_bytes().to_vec();
        prefix.extend_from_slice(&[0; 8]);
        let error = read_bytes(&prefix).await.expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let message = vec![0; usize::try_from(FRAME_BYTES_MAX).expect("it fits")];
        assert!(encode(0, &message).is_err());
    }
}
