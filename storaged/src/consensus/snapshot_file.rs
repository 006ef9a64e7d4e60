//! The snapshot on disk: one file, replaced whole.
//!
//! ```text
//!  0  8  magic "PTRLSNAP"
//!  8  4  version, little endian
//! 12  4  bytes of the header, little endian
//! 16  8  xxh3-64 over bytes 8..16 and the header, little endian
//! 24  …  header (postcard): log position, membership, image length, image xxh3-128
//!  …  …  image
//! ```
//!
//! Invariant: under the final name lies a whole snapshot, never older than one that lay there
//! before (temporary file, fsync, rename, fsync of the directory). An I/O error while writing
//! aborts the process, as it does for the log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::log_thread::die;
use super::types::{SnapshotImage, SnapshotMeta, bytes_len};

const MAGIC: &[u8; 8] = b"PTRLSNAP";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 24;
const FILE_NAME: &str = "snapshot";
const TEMPORARY_NAME: &str = "snapshot.new";

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a snapshot: it does not start with {MAGIC:?}", path.display())]
    Magic { path: PathBuf },
    #[error("{} has version {found}, this server reads {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
}

#[derive(Serialize, Deserialize)]
struct Header {
    meta: SnapshotMeta,
    image_bytes: u64,
    image_xxh3: u128,
}

/// Writes `image` as the snapshot in `dir`.
///
/// # Panics
/// Never; it aborts the process when the disk refuses, see the module's invariant.
pub(super) fn store(dir: &Path, meta: &SnapshotMeta, image: &SnapshotImage) {
    if let Err(error) = try_store(dir, meta, image) {
        die("write and sync a snapshot of the consensus state", &error);
    }
}

fn try_store(dir: &Path, meta: &SnapshotMeta, image: &SnapshotImage) -> io::Result<()> {
    let header = Header {
        meta: meta.clone(),
        image_bytes: bytes_len(&image.0),
        image_xxh3: xxh3_128(&image.0),
    };
    let header = postcard::to_stdvec(&header).map_err(io::Error::other)?;
    let header_len = u32::try_from(header.len()).map_err(io::Error::other)?;
    let [version, header_len] = [VERSION.to_le_bytes(), header_len.to_le_bytes()];

    let temporary = dir.join(TEMPORARY_NAME);
    let mut file = File::create(&temporary)?;
    file.write_all(MAGIC)?;
    file.write_all(&version)?;
    file.write_all(&header_len)?;
    file.write_all(&header_xxh3(&version, &header_len, &header).to_le_bytes())?;
    file.write_all(&header)?;
    file.write_all(&image.0)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, dir.join(FILE_NAME))?;
    File::open(dir)?.sync_all()
}

/// Reads and verifies the snapshot in `dir`; `None` when there is none.
pub(super) fn load(dir: &Path) -> Result<Option<(SnapshotMeta, SnapshotImage)>, SnapshotFileError> {
    let path = dir.join(FILE_NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SnapshotFileError::Read { path, source }),
    };
    parse(&path, bytes).map(Some)
}

fn parse(
    path: &Path,
    mut bytes: Vec<u8>,
) -> Result<(SnapshotMeta, SnapshotImage), SnapshotFileError> {
    let damaged = |what| SnapshotFileError::Damaged { path: path.to_path_buf(), what };
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(damaged("it is shorter than its prefix"));
    };
    let (magic, fields) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(SnapshotFileError::Magic { path: path.to_path_buf() });
    }
    let (version, fields) = fields.split_at(4);
    let (header_len, header_sum) = fields.split_at(4);
    let found = u32::from_le_bytes(version.try_into().expect("split at 4 bytes"));
    if found != VERSION {
        return Err(SnapshotFileError::Version { path: path.to_path_buf(), found });
    }
    let header_bytes = u32::from_le_bytes(header_len.try_into().expect("split at 4 bytes"));
    let header_bytes = usize::try_from(header_bytes).expect("32 bits fit a length in memory");
    let Some(header) = rest.get(..header_bytes) else {
        return Err(damaged("it is shorter than its header"));
    };
    if header_xxh3(version, header_len, header).to_le_bytes() != *header_sum {
        return Err(damaged("its header does not match the header's checksum"));
    }
    let Header { meta, image_bytes, image_xxh3 } =
        postcard::from_bytes(header).map_err(|_| damaged("its header cannot be decoded"))?;
    let image = bytes.split_off(PREFIX_BYTES + header_bytes);
    if bytes_len(&image) != image_bytes {
        return Err(damaged("its image is not as long as the header says"));
    }
    if xxh3_128(&image) != image_xxh3 {
        return Err(damaged("its image does not match the image's checksum"));
    }
    Ok((meta, SnapshotImage(image.into())))
}

fn header_xxh3(version: &[u8], header_len: &[u8], header: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(version);
    hash.update(header_len);
    hash.update(header);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Vec<u8> {
        let image = SnapshotImage(vec![7; 1000].into());
        store(dir, &SnapshotMeta::default(), &image);
        fs::read(dir.join(FILE_NAME)).expect("it was just written")
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        written(dir.path());
        let (meta, image) = load(dir.path()).expect("it reads").expect("it exists");
        assert_eq!(meta, SnapshotMeta::default());
        assert_eq!(image.0.as_slice(), vec![7; 1000]);
        assert!(!dir.path().join(TEMPORARY_NAME).exists());
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let good = written(dir.path());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(dir.path().join(FILE_NAME), bad).expect("write the damaged file");
            assert!(load(dir.path()).is_err(), "a bit flip at byte {at}");
        }
        for len in (0..good.len()).step_by(7) {
            fs::write(dir.path().join(FILE_NAME), &good[..len]).expect("write the cut file");
            assert!(load(dir.path()).is_err(), "a cut at byte {len}");
        }
    }
}
