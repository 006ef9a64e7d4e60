//! Reader: files read by O_DIRECT through tokio-uring, with descriptors of the scrubber's own.
//!
//! Invariant: what is handed on came from the device and not from the page cache; a block that
//! cannot be read spoils no other.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use smt::SegmentId;
use smt::ids::BLOCK_BYTES;
use smt::wire::checksum::block_sum;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::{File, OpenOptions};

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK_BYTES == 4096);

/// Memory for one read, in which an aligned piece lies.
pub(super) struct Reader {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

/// Opens a file for reading by O_DIRECT.
pub(super) async fn open(path: &Path) -> io::Result<File> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("flags fit");
    OpenOptions::new().read(true).custom_flags(direct).open(path).await
}

impl Reader {
    /// Room for `len` bytes, a multiple of 4096.
    pub(super) fn new(len: usize) -> Reader {
        let bytes = vec![0; len + BLOCK];
        let at = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Reader { bytes, at, len }
    }

    /// Reads `len` bytes at `offset`, both multiples of 4096.
    pub(super) async fn read(&mut self, file: &File, offset: u64, len: usize) -> io::Result<&[u8]> {
        let len = len.min(self.len);
        // The kernel has the memory for the time; it comes back with the result.
        let piece = std::mem::take(&mut self.bytes).slice(self.at..self.at + len);
        let (result, piece) = file.read_at(piece, offset).await;
        self.bytes = piece.into_inner();
        match result {
            Ok(read) if read == len => Ok(&self.bytes[self.at..self.at + len]),
            Ok(read) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{read} of {len} bytes at {offset}"),
            )),
            Err(error) => Err(error),
        }
    }

    /// The sums of `count` blocks from `first` on; none for those that cannot be read.
    pub(super) async fn sums(
        &mut self,
        file: &File,
        segment: SegmentId,
        first: u32,
        count: u32,
    ) -> Vec<Option<u64>> {
        let blocks = usize::try_from(count).expect("a u32 fits a usize here");
        let offset = u64::from(first) * BLOCK_BYTES;
        match self.read(file, offset, blocks * BLOCK).await {
            Ok(bytes) => bytes
                .chunks_exact(BLOCK)
                .zip(first..)
                .map(|(bytes, block)| Some(block_sum(segment, block, bytes)))
                .collect(),
            Err(error) if count > 1 => {
                tracing::warn!(segment = segment.0, first, %error, "the scrubber reads block by block");
                let mut sums = Vec::with_capacity(blocks);
                for block in first..first + count {
                    let offset = u64::from(block) * BLOCK_BYTES;
                    let read = self.read(file, offset, BLOCK).await;
                    sums.push(read.ok().map(|bytes| block_sum(segment, block, bytes)));
                }
                sums
            }
            Err(_) => vec![None; blocks],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_summed_by_their_place_and_what_cannot_be_read_has_no_sum() {
        let directory = tempfile::tempdir_in(".").expect("a directory that takes O_DIRECT");
        let path = directory.path().join("data");
        let bytes: Vec<u8> =
            (0..3 * BLOCK).map(|i| u8::try_from(i / BLOCK).expect("small")).collect();
        std::fs::write(&path, &bytes).expect("it can be written");
        let segment = SegmentId(9);
        let sum = |block: u32, byte: u8| Some(block_sum(segment, block, &[byte; BLOCK]));
        tokio_uring::start(async {
            let file = open(&path).await.expect("it can be opened");
            let mut reader = Reader::new(16 * BLOCK);
            let all = reader.sums(&file, segment, 0, 3).await;
            assert_eq!(all, [sum(0, 0), sum(1, 1), sum(2, 2)]);
            // Beyond the end nothing can be read, as of a bad sector.
            let past = reader.sums(&file, segment, 2, 2).await;
            assert_eq!(past, [sum(2, 2), None]);
        });
    }
}
