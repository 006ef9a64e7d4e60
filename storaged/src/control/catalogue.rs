//! Catalogue: the volumes and servers of the map, in a file of their own beside the replicas.
//!
//! Invariant: nothing reads it but a recovery from headers, which finds in it what headers do not
//! tell: names, sizes, and who the servers were. Written whole; as old as its version says.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smt::MapVersion;
use smt::map::{Map, Server, Volume};
use xxhash_rust::xxh3::xxh3_64;

use super::Control;

const FILE_NAME: &str = "CATALOGUE";
const MAGIC: &[u8; 8] = b"PETRLCAT";
/// * 1: the first.
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 12;
const CHECK_BYTES: usize = 8;

/// How often it is compared with the map.
const EVERY: Duration = Duration::from_secs(1);

/// What headers do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// The map's, when this was written.
    pub version: MapVersion,
    /// Nobody has them attached, as far as this tells.
    pub volumes: Vec<Volume>,
    pub servers: Vec<Server>,
}

impl Catalogue {
    fn of(map: &Map) -> Catalogue {
        let plain = |volume: &Volume| Volume { attachment: None, ..volume.clone() };
        Catalogue {
            version: map.version(),
            volumes: map.volumes().map(plain).collect(),
            servers: map.servers().cloned().collect(),
        }
    }

    fn same_but_version(&self, other: &Catalogue) -> bool {
        self.volumes == other.volumes && self.servers == other.servers
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(postcard::to_stdvec(self).expect("our own types serialise into memory"));
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Catalogue, String> {
        let (body, check) = bytes
            .split_last_chunk::<CHECK_BYTES>()
            .filter(|(body, _)| body.len() >= PREFIX_BYTES && body.starts_with(MAGIC))
            .ok_or("it does not begin as it should")?;
        let version: [u8; 4] = body[8..PREFIX_BYTES].try_into().expect("four bytes");
        let version = u32::from_le_bytes(version);
        if version > VERSION {
            return Err(format!("it has format {version}, and this program knows {VERSION}"));
        }
        if xxh3_64(body) != u64::from_le_bytes(*check) {
            return Err("it does not match its checksum".to_owned());
        }
        postcard::from_bytes(&body[PREFIX_BYTES..]).map_err(|error| error.to_string())
    }

    /// The catalogue in a data directory; none if there is none. Blocks.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or was written by a newer program.
    pub fn load(data_dir: &Path) -> Result<Option<Catalogue>, String> {
        let path = data_dir.join(FILE_NAME);
        match fs::read(&path) {
            Ok(bytes) => Catalogue::from_bytes(&bytes)
                .map(Some)
                .map_err(|why| format!("{}: {why}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("read {}: {error}", path.display())),
        }
    }

    fn store(&self, data_dir: &Path) -> io::Result<()> {
        let (path, new) = (data_dir.join(FILE_NAME), data_dir.join("CATALOGUE.tmp"));
        let mut file = File::create(&new)?;
        file.write_all(&self.to_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(data_dir)?.sync_all()
    }
}

/// Writes the catalogue whenever volumes or servers have changed.
pub(super) async fn keep(control: Control) {
    let data_dir = control.inner.config.data_dir.clone();
    let mut written = Catalogue::load(&data_dir).ok().flatten().unwrap_or_default();
    let mut failed = 0_u64;
    loop {
        tokio::time::sleep(EVERY).await;
        let map = control.snapshot();
        // A map that is still being read back is no news.
        if map.version() <= written.version {
            continue;
        }
        let now = Catalogue::of(&map);
        if now.same_but_version(&written) {
            continue;
        }
        let (directory, next) = (data_dir.clone(), now.clone());
        match tokio::task::spawn_blocking(move || next.store(&directory)).await {
            Ok(Ok(())) => written = now,
            Ok(Err(error)) => {
                failed += 1;
                if failed.is_power_of_two() {
                    tracing::warn!(%error, "the catalogue of volumes cannot be written");
                }
            }
            Err(error) => tracing::error!(%error, "the catalogue of volumes was not written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_reads_back_and_no_flipped_bit_goes_unnoticed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Catalogue::load(dir.path()), Ok(None));
        let catalogue = Catalogue { version: MapVersion(7), ..Catalogue::default() };
        catalogue.store(dir.path()).expect("it is written");
        assert_eq!(Catalogue::load(dir.path()), Ok(Some(catalogue.clone())));
        let good = catalogue.to_bytes();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Catalogue::from_bytes(&bad).is_err(), "byte {at}");
        }
        assert!(Catalogue::from_bytes(&good[..5]).is_err());
    }
}
