//! `DIR/cluster.toml`: what a development cluster is, remembered across starts.
//!
//! Invariant: servers, replicas and segment size never change once written; volumes are what the
//! cluster had when last asked. Written whole and atomically, so that a crash leaves the old one
//! or the new one. What the cluster *really* has is asked from it, never read from here.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::{DevArgs, HttpListen, NbdListen, VolumeSpec};
use super::error::DevError;
use client_lib::size::display_bytes;

/// Version of this file's format; a newer one is refused.
const FORMAT: u32 = 1;
const FILE_NAME: &str = "cluster.toml";

const SERVERS_DEFAULT: u16 = 3;
const REPLICAS_DEFAULT: u16 = 2;
const SEGMENT_BYTES_DEFAULT: u64 = 1 << 30;
const VOLUME_BYTES_DEFAULT: u64 = 4 << 30;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    pub servers: u16,
    pub replicas: u16,
    pub segment_bytes: u64,
    /// `unix:PATH` or `tcp:HOST:PORT` when it was chosen; the default follows DIR around.
    #[serde(skip_serializing_if = "Option::is_none")]
    nbd: Option<String>,
    /// Whether the HTTP ports were chosen by the operator, and so must not be replaced by others.
    pub http_chosen: bool,
    /// The cluster has formed once. From then on nobody may bootstrap another one over it.
    pub formed: bool,
    /// In order of id; empty until ports have been found.
    #[serde(default, rename = "server")]
    pub addresses: Vec<Addresses>,
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeEntry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    pub id: u16,
    pub data: SocketAddr,
    pub http: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeEntry {
    pub name: String,
    pub size_bytes: u64,
    /// It has existed. If the cluster has it no more, someone deleted it, and it stays deleted.
    pub created: bool,
}

/// Reads only the version, so that a newer file is refused for being newer.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Manifest {
    /// What the arguments describe, for a directory without a cluster.
    pub fn new(args: &DevArgs) -> Result<Self, DevError> {
        let servers = args.servers.unwrap_or(SERVERS_DEFAULT);
        let replicas = args.replicas.unwrap_or(REPLICAS_DEFAULT.min(servers));
        if replicas > servers {
            return Err(DevError::TooFewServers { replicas, servers });
        }
        let mut manifest = Self {
            format: FORMAT,
            servers,
            replicas,
            segment_bytes: args.segment_size.unwrap_or(SEGMENT_BYTES_DEFAULT),
            nbd: None,
            http_chosen: false,
            formed: false,
            addresses: Vec::new(),
            volumes: Vec::new(),
        };
        manifest.take_listeners(args);
        manifest.add_volumes(&args.volumes)?;
        if manifest.volumes.is_empty() {
            manifest.volumes.push(VolumeEntry {
                name: "vol0".to_owned(),
                size_bytes: VOLUME_BYTES_DEFAULT,
                created: false,
            });
        }
        Ok(manifest)
    }

    /// Reads `dir`'s, if it has one.
    pub fn load(dir: &Path) -> Result<Option<Self>, DevError> {
        let path = path_in(dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(DevError::file("read", &path)(why)),
        };
        let bad = |why: String| DevError::BadManifest { path: path.clone(), why };
        let FormatOnly { format } = toml::from_str(&text).map_err(|why| bad(why.to_string()))?;
        if format != FORMAT {
            return Err(bad(format!("its format is {format}, and this one is {FORMAT}")));
        }
        let manifest: Self = toml::from_str(&text).map_err(|why| bad(why.to_string()))?;
        let ids_count_up =
            manifest.addresses.iter().zip(1_u16..).all(|(addresses, id)| addresses.id == id);
        let complete = manifest.addresses.is_empty()
            || manifest.addresses.len() == usize::from(manifest.servers);
        if !ids_count_up || !complete || manifest.servers == 0 {
            return Err(bad("its servers do not count up from 1".to_owned()));
        }
        Ok(Some(manifest))
    }

    /// `dir`'s cluster with the arguments applied, or a new one; an error when they contradict.
    pub fn for_start(dir: &Path, args: &DevArgs) -> Result<Self, DevError> {
        let Some(mut manifest) = Self::load(dir)? else {
            if has_server_data(dir) {
                return Err(DevError::ForeignDirectory { dir: dir.to_path_buf() });
            }
            return Self::new(args);
        };
        manifest.check(dir, args)?;
        manifest.take_listeners(args);
        manifest.add_volumes(&args.volumes)?;
        Ok(manifest)
    }

    /// Listeners may differ from start to start: no data hangs on them.
    fn take_listeners(&mut self, args: &DevArgs) {
        if let Some(nbd) = &args.nbd {
            self.nbd = Some(nbd.to_string());
        }
        if let Some(HttpListen(_)) = args.http {
            self.http_chosen = true;
        }
    }

    /// Refuses what was said and differs from what is remembered.
    fn check(&self, dir: &Path, args: &DevArgs) -> Result<(), DevError> {
        let contradiction = |what: String, remembered: String, asked: String| {
            Err(DevError::Contradiction { dir: dir.to_path_buf(), what, remembered, asked })
        };
        if let Some(asked) = args.servers.filter(|&asked| asked != self.servers) {
            return contradiction(
                "--servers".to_owned(),
                self.servers.to_string(),
                asked.to_string(),
            );
        }
        if let Some(asked) = args.replicas.filter(|&asked| asked != self.replicas) {
            return contradiction(
                "--replicas".to_owned(),
                self.replicas.to_string(),
                asked.to_string(),
            );
        }
        if let Some(asked) = args.segment_size.filter(|&asked| asked != self.segment_bytes) {
            let remembered = display_bytes(self.segment_bytes);
            return contradiction("--segment-size".to_owned(), remembered, display_bytes(asked));
        }
        for VolumeSpec { name, size_bytes } in &args.volumes {
            let known = self.volumes.iter().find(|volume| volume.name == *name);
            if let Some(known) = known.filter(|known| known.size_bytes != *size_bytes) {
                return contradiction(
                    format!("--volume {name} of"),
                    display_bytes(known.size_bytes),
                    display_bytes(*size_bytes),
                );
            }
        }
        Ok(())
    }

    /// Notes the volumes asked for by name; they are to exist when the cluster is ready.
    fn add_volumes(&mut self, asked: &[VolumeSpec]) -> Result<(), DevError> {
        for VolumeSpec { name, size_bytes } in asked {
            match self.volumes.iter_mut().find(|volume| volume.name == *name) {
                None => self.volumes.push(VolumeEntry {
                    name: name.clone(),
                    size_bytes: *size_bytes,
                    created: false,
                }),
                Some(known) if known.size_bytes == *size_bytes => known.created = false,
                Some(_) => return Err(DevError::VolumeTwice { name: name.clone() }),
            }
        }
        Ok(())
    }

    /// Where the bridge listens, as an absolute path or an address.
    pub fn nbd(&self, dir: &Path) -> Result<NbdListen, DevError> {
        let Some(text) = &self.nbd else {
            return Ok(NbdListen::default_in(dir));
        };
        let listen: NbdListen =
            text.parse().map_err(|why| DevError::BadManifest { path: path_in(dir), why })?;
        listen.absolute().map_err(DevError::file("find", dir))
    }

    /// Keeps the chosen NBD address as an absolute one, so that the next start, from another
    /// working directory, means the same.
    pub fn pin_nbd(&mut self, dir: &Path) -> Result<(), DevError> {
        if self.nbd.is_some() {
            self.nbd = Some(self.nbd(dir)?.to_string());
        }
        Ok(())
    }

    /// Takes over what volumes the cluster has, in the order they were asked for, others after.
    pub fn note_volumes(&mut self, actual: &[(String, u64)]) {
        self.volumes.retain(|volume| actual.iter().any(|(name, _)| *name == volume.name));
        for (name, size_bytes) in actual {
            match self.volumes.iter_mut().find(|volume| volume.name == *name) {
                Some(known) => {
                    known.size_bytes = *size_bytes;
                    known.created = true;
                }
                None => self.volumes.push(VolumeEntry {
                    name: name.clone(),
                    size_bytes: *size_bytes,
                    created: true,
                }),
            }
        }
    }

    /// Writes it to `dir`, atomically.
    pub fn save(&self, dir: &Path) -> Result<(), DevError> {
        let text = toml::to_string(self).expect("a manifest is tables of numbers and strings");
        let header =
            "# What `petrel dev` remembers of this cluster. Written by it at every start.\n";
        write_atomically(&path_in(dir), format!("{header}{text}").as_bytes())
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

fn has_server_data(dir: &Path) -> bool {
    dir.join("server-1").exists()
}

/// Replaces `path` by `bytes` so that a crash leaves one or the other.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DevError> {
    let scratch = path.with_extension("toml.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&scratch)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&scratch, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(DevError::file("write", path))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DevArgs,
    }

    fn args(line: &[&str]) -> DevArgs {
        let words = std::iter::once("dev").chain(line.iter().copied());
        Line::try_parse_from(words).expect("valid arguments").args
    }

    #[test]
    fn the_defaults_are_three_servers_two_replicas_and_vol0() {
        let manifest = Manifest::new(&args(&[])).expect("consistent");
        assert_eq!((manifest.servers, manifest.replicas), (3, 2));
        assert_eq!(manifest.segment_bytes, 1 << 30);
        assert_eq!(manifest.volumes.len(), 1);
        assert_eq!(manifest.volumes[0].size_bytes, 4 << 30);
        let alone = Manifest::new(&args(&["--servers", "1"])).expect("consistent");
        assert_eq!(alone.replicas, 1);
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut manifest = Manifest::new(&args(&["--volume", "a:1G", "--nbd", "tcp:127.0.0.1:9"]))
            .expect("consistent");
        let address = SocketAddr::from(([127, 0, 0, 1], 8001));
        manifest.addresses =
            (1..=3).map(|id| Addresses { id, data: address, http: address }).collect();
        manifest.save(dir.path()).expect("writable");
        let read = Manifest::load(dir.path()).expect("readable");
        assert_eq!(read, Some(manifest));
    }

    #[test]
    fn what_contradicts_is_refused_and_what_agrees_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = args(&["--servers", "3", "--volume", "a:1G", "--segment-size", "64MiB"]);
        let manifest = Manifest::new(&first).expect("consistent");
        manifest.save(dir.path()).expect("writable");
        for line in [
            ["--servers", "4"],
            ["--replicas", "3"],
            ["--segment-size", "1G"],
            ["--volume", "a:2G"],
        ] {
            let refused = Manifest::for_start(dir.path(), &args(&line)).expect_err("contradicts");
            assert_eq!(refused.exit_code(), 3, "{line:?}: {refused}");
        }
        let again = Manifest::for_start(dir.path(), &first).expect("agrees");
        assert_eq!(again, manifest);
        let more = Manifest::for_start(dir.path(), &args(&["--volume", "b:2G"])).expect("agrees");
        assert_eq!(more.volumes.len(), 2);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(path_in(dir.path()), "format = 2\nmystery = true\n").expect("writable");
        let refused = Manifest::load(dir.path()).expect_err("newer");
        assert!(refused.to_string().contains("format is 2"), "{refused}");
    }

    #[test]
    fn a_directory_with_foreign_server_data_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("server-1")).expect("writable");
        let refused = Manifest::for_start(dir.path(), &args(&[])).expect_err("foreign");
        assert_eq!(refused.exit_code(), 3);
    }

    #[test]
    fn a_deleted_volume_stays_deleted_until_it_is_asked_for_by_name() {
        let mut manifest = Manifest::new(&args(&["--volume", "a:1G"])).expect("consistent");
        manifest.note_volumes(&[("a".to_owned(), 1 << 30), ("b".to_owned(), 4096)]);
        assert!(manifest.volumes.iter().all(|volume| volume.created));
        manifest.note_volumes(&[("b".to_owned(), 4096)]);
        assert_eq!(manifest.volumes.len(), 1);
    }
}
