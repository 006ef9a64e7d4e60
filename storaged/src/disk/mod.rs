//! Disk: all replicas of one shard, and what their stores ask of the device.
//!
//! Invariant: every request is answered once, through [`Disk::drain`]; the shard's thread never
//! waits for a file. What a store decides it decides in `smt::store`; nothing is decided here.
//!
//! [`DataDir`] is opened and locked once per server, [`Syncer`] started once; then each shard
//! opens its own `Disk`. The format is drawn in `docs/on-disk-format.md`.

mod data_dir;
mod device;
mod error;
mod faults;
mod files;
mod headers;
mod layout;
mod syncer;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client_lib::Data;
use reactor::{Event, Reactor};
use smt::server::FoundReplica;
use smt::store::{DeviceOp, DeviceResult, Store, StoreRequest, StoreResult, StoreStep, Table};
use smt::{BlockRange, Geometry, IoId, SegmentId, Settings};

pub use data_dir::{AtRest, DataDir, Space, note_refusal};
use device::{Device, NoTable, Started};
use error::whole_story;
pub use error::{DiskError, Result};
pub use faults::{FaultSettings, Faults};
use files::Place;
pub use headers::{Header, headers};
pub use layout::{ENTRIES_AT, FORMAT_VERSION, Identity, PAGE_BYTES};
pub use syncer::Syncer;
use syncer::{Answer, Line};
pub use verify::replica_path;

/// Upper 16 bits of every token this module gives the reactor. Others keep away from it.
pub const TOKEN_TAG: u64 = 0xD15C << 48;
const TOKEN_TAG_MASK: u64 = 0xFFFF << 48;

/// Whom an operation on the device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoClass {
    /// A client waits for it.
    Client,
    /// Copying, verification, reconciliation.
    Copy,
}

/// Who listens to the device's reads and writes, one by one, as they end.
pub trait IoObserver: Send + Sync {
    fn read(&self, class: IoClass, us: u64, bytes: u64);
    fn write(&self, class: IoClass, us: u64, bytes: u64);
    /// A read, write or sync failed.
    fn error(&self);
    /// So many blocks did not hold what the table says. Those that could not be read count too.
    fn mismatch(&self, blocks: u64);
}

/// How a shard's replicas are opened.
pub struct DiskOptions {
    /// This shard, of how many: it has the segments whose id leaves this remainder.
    pub shard: (u64, u64),
    pub settings: Settings,
    /// Only where the server was started with `--allow-faults`.
    pub faults: Option<Arc<Faults>>,
    pub observer: Arc<dyn IoObserver>,
}

struct Replica {
    store: Store<Data>,
    geometry: Geometry,
    /// None before it is made and after it is deleted.
    device: Option<Device>,
}

/// An operation of a store that has not ended.
struct Pending {
    segment: SegmentId,
    op: u64,
    class: IoClass,
    began: Instant,
    started: Started,
    /// It shall seem to fail.
    spoiled: bool,
}

/// A job of the syncer.
struct Job {
    segment: SegmentId,
    op: u64,
}

/// All replicas of one shard.
pub struct Disk {
    directory: PathBuf,
    identity: Identity,
    shard: (u64, u64),
    settings: Settings,
    faults: Option<Arc<Faults>>,
    observer: Arc<dyn IoObserver>,
    syncer: Line,
    replicas: BTreeMap<SegmentId, Replica>,
    pending: BTreeMap<u64, Pending>,
    /// Ended, and held back by a fault until their timer comes.
    delayed: BTreeMap<u64, (Pending, DeviceResult<Data>)>,
    jobs: BTreeMap<u64, Job>,
    next_token: u64,
    /// Requests of class [`IoClass::Copy`] that are not done.
    copies: BTreeSet<(SegmentId, IoId)>,
    done: Vec<(SegmentId, IoId, StoreResult<Data>)>,
}

impl Disk {
    /// Opens the shard's replicas. Those that are of no use are logged, left where they are and
    /// not among the found; leftovers of replicas half made or half deleted are cleared away.
    /// Blocks.
    ///
    /// # Errors
    /// When a replica was written by a newer program, or in another store, or is held by another
    /// process.
    pub fn open(
        data_dir: &DataDir,
        syncer: &Syncer,
        options: DiskOptions,
        reactor: &mut Reactor,
    ) -> Result<(Disk, Vec<FoundReplica>)> {
        let DiskOptions { shard, settings, faults, observer } = options;
        assert!(shard.0 < shard.1, "shard {} of {}", shard.0, shard.1);
        let mut disk = Disk {
            directory: data_dir.segments(),
            identity: data_dir.identity(),
            shard,
            settings,
            faults,
            observer,
            syncer: syncer.line(reactor.waker()),
            replicas: BTreeMap::new(),
            pending: BTreeMap::new(),
            delayed: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_token: 0,
            copies: BTreeSet::new(),
            done: Vec::new(),
        };
        let mut found = Vec::new();
        for segment in disk.listed()? {
            let place = disk.place(segment);
            if !place.path("meta").exists() {
                files::remove_files(&place)?;
                continue;
            }
            data_dir.space().count(files::counted_bytes(&place)?);
            match files::open(&place, &disk.identity) {
                Ok(files) => {
                    let device = Device::new(place, files, reactor)?;
                    found.push(disk.adopt(device));
                }
                Err(error) if error.loses_the_replica() => {
                    disk.observer.error();
                    let error = whole_story(&error);
                    tracing::error!(segment = segment.0, error, "a replica is lost");
                }
                Err(error) => return Err(error),
            }
        }
        Ok((disk, found))
    }

    fn adopt(&mut self, device: Device) -> FoundReplica {
        let meta = device.meta().clone();
        let (segment, geometry) = (meta.config.segment, meta.config.geometry);
        let store = Store::new(segment, geometry, device.intent(), &self.settings);
        let in_doubt = store.in_doubt();
        let replica = Replica { store, geometry, device: Some(device) };
        self.replicas.insert(segment, replica);
        FoundReplica { meta, in_doubt }
    }

    /// The shard's segments of which there are files.
    fn listed(&self) -> Result<BTreeSet<SegmentId>> {
        let mut segments = BTreeSet::new();
        let entries =
            std::fs::read_dir(&self.directory).map_err(error::doing("list", &self.directory))?;
        for entry in entries {
            let entry = entry.map_err(error::doing("list", &self.directory))?;
            let name = entry.file_name();
            if let Some((segment, _)) = name.to_str().and_then(Place::parse)
                && segment.0 % self.shard.1 == self.shard.0
            {
                segments.insert(segment);
            }
        }
        Ok(segments)
    }

    fn place(&self, segment: SegmentId) -> Place {
        Place { directory: self.directory.clone(), segment }
    }

    /// The segments there is a replica of, ascending.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.replicas.iter().filter(|(_, r)| r.device.is_some()).map(|(segment, _)| *segment)
    }

    /// Takes a request of a replica. Checks and raw reads count as [`IoClass::Copy`] whatever is
    /// said.
    pub fn submit(
        &mut self,
        reactor: &mut Reactor,
        segment: SegmentId,
        io: IoId,
        class: IoClass,
        request: StoreRequest<Data>,
    ) {
        let known = self.replicas.contains_key(&segment);
        match &request {
            StoreRequest::Create { meta } => {
                let geometry = meta.config.geometry;
                let replica = self.replicas.entry(segment).or_insert_with(|| Replica {
                    store: Store::new(segment, geometry, Vec::new(), &self.settings),
                    geometry,
                    device: None,
                });
                if replica.geometry != geometry || !files::is_creatable(&geometry) {
                    let error = format!("create segment {segment}: not with {geometry:?}");
                    if !known {
                        self.replicas.remove(&segment);
                    }
                    return self.done.push((segment, io, StoreResult::Failed { error }));
                }
            }
            // Of a replica that could not be opened, there may be files.
            StoreRequest::Delete if !known => {
                let geometry = Geometry { segment_blocks: 1, chunk_blocks: 1, region_blocks: 1 };
                let store = Store::new(segment, geometry, Vec::new(), &self.settings);
                self.replicas.insert(segment, Replica { store, geometry, device: None });
            }
            StoreRequest::SetMeta { .. }
            | StoreRequest::Write { .. }
            | StoreRequest::Zero { .. }
            | StoreRequest::Flush
            | StoreRequest::Read { .. }
            | StoreRequest::Check { .. }
            | StoreRequest::Sums { .. }
            | StoreRequest::ReadRaw { .. }
            | StoreRequest::Delete => {
                if !known {
                    let error = format!("no replica of segment {segment} here");
                    return self.done.push((segment, io, StoreResult::Failed { error }));
                }
            }
        }
        let internal = matches!(request, StoreRequest::Check { .. } | StoreRequest::ReadRaw { .. });
        if class == IoClass::Copy || internal {
            self.copies.insert((segment, io));
        }
        let mut steps = Vec::new();
        self.with_store(segment, |store, table| store.submit(io, request, table, &mut steps));
        self.take_steps(reactor, segment, steps);
    }

    /// Time passed, about a second since the last time. `unsettled` says, for each segment, the
    /// blocks the cluster has not decided yet (see [`Store::idle_tick`]), or none when that is
    /// not known now.
    pub fn tick(
        &mut self,
        reactor: &mut Reactor,
        mut unsettled: impl FnMut(SegmentId) -> Option<Vec<BlockRange>>,
    ) {
        let segments: Vec<SegmentId> = self.segments().collect();
        for segment in segments {
            let Some(unsettled) = unsettled(segment) else {
                continue;
            };
            let mut steps = Vec::new();
            self.with_store(segment, |store, table| {
                store.idle_tick(&unsettled, table, &mut steps);
            });
            self.take_steps(reactor, segment, steps);
        }
    }

    /// Takes an event if it is the disk's, else gives it back. A `Woken` is given back always.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: Event) -> Option<Event> {
        let token = match &event {
            Event::Woken => {
                while let Some(answer) = self.syncer.receive() {
                    self.job_ended(reactor, answer);
                }
                return Some(event);
            }
            Event::Read { token, .. }
            | Event::Wrote { token, .. }
            | Event::Synced { token, .. }
            | Event::Timer { token } => *token,
            _ => return Some(event),
        };
        if token & TOKEN_TAG_MASK != TOKEN_TAG {
            return Some(event);
        }
        if let Event::Timer { .. } = event {
            if let Some((pending, result)) = self.delayed.remove(&token) {
                self.deliver(reactor, &pending, result);
            }
            return None;
        }
        // Ours in any case, even if nobody waits for it.
        let pending = self.pending.remove(&token)?;
        let result = self.result_of(&pending, event);
        let delay = self.delay(&pending);
        if delay.is_zero() {
            self.deliver(reactor, &pending, result);
        } else {
            reactor.timer(delay, token);
            self.delayed.insert(token, (pending, result));
        }
        None
    }

    /// Hands over the answers there are.
    pub fn drain(&mut self, out: &mut Vec<(SegmentId, IoId, StoreResult<Data>)>) {
        out.append(&mut self.done);
    }

    /// Whether no request is under way: the shard may stop.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.replicas.values().all(|replica| replica.store.is_idle())
    }

    fn with_store(
        &mut self,
        segment: SegmentId,
        act: impl FnOnce(&mut Store<Data>, &mut dyn Table),
    ) {
        let replica = self.replicas.get_mut(&segment).expect("a replica in use is kept");
        match &mut replica.device {
            Some(device) => act(&mut replica.store, device.table()),
            None => act(&mut replica.store, &mut NoTable),
        }
    }

    /// Does what a store wants, and what it wants when that is done at once.
    fn take_steps(
        &mut self,
        reactor: &mut Reactor,
        segment: SegmentId,
        steps: Vec<StoreStep<Data>>,
    ) {
        let mut queue = VecDeque::from(steps);
        while let Some(step) = queue.pop_front() {
            match step {
                StoreStep::Done { io, result } => self.finish(segment, io, result),
                StoreStep::Device { op, what } => {
                    if let Some(result) = self.execute(reactor, segment, op, what) {
                        let mut steps = Vec::new();
                        self.with_store(segment, |store, table| {
                            store.device_done(op, result, table, &mut steps);
                        });
                        queue.extend(steps);
                    }
                }
            }
        }
        // Deleted, or never made.
        if let Some(replica) = self.replicas.get(&segment)
            && replica.device.is_none()
            && replica.store.is_idle()
            && !replica.store.is_failed()
        {
            self.replicas.remove(&segment);
        }
    }

    fn finish(&mut self, segment: SegmentId, io: IoId, result: StoreResult<Data>) {
        self.copies.remove(&(segment, io));
        if let StoreResult::BadBlocks { blocks } = &result {
            self.observer.mismatch(u64::try_from(blocks.len()).expect("a count fits 64 bits"));
        }
        self.done.push((segment, io, result));
    }

    /// Starts a step; its result if it has one at once.
    fn execute(
        &mut self,
        reactor: &mut Reactor,
        segment: SegmentId,
        op: u64,
        what: DeviceOp<Data>,
    ) -> Option<DeviceResult<Data>> {
        let token = TOKEN_TAG | (self.next_token & !TOKEN_TAG_MASK);
        self.next_token += 1;
        let place = self.place(segment);
        let replica = self.replicas.get_mut(&segment).expect("a replica in use is kept");
        match what {
            DeviceOp::Create { meta } => {
                if let Some(device) = replica.device.take() {
                    device.close(reactor);
                }
                self.jobs.insert(token, Job { segment, op });
                self.syncer.create(token, place, self.identity, meta);
                return None;
            }
            DeviceOp::Delete => {
                if let Some(device) = replica.device.take() {
                    device.close(reactor);
                }
                self.jobs.insert(token, Job { segment, op });
                self.syncer.delete(token, place);
                return None;
            }
            _ => {}
        }
        let class = match replica.store.request_of(op) {
            Some(io) if self.copies.contains(&(segment, io)) => IoClass::Copy,
            Some(_) | None => IoClass::Client,
        };
        let Some(device) = &mut replica.device else {
            let error = format!("no replica of segment {segment} here");
            return Some(DeviceResult::Failed { error });
        };
        match device.start(reactor, what, token) {
            Ok(None) => None,
            Ok(Some(started)) => {
                let hit = match started {
                    Started::Read { .. } | Started::Write { .. } => true,
                    Started::Sync { .. } => false,
                };
                let spoiled = hit && self.faults.as_ref().is_some_and(|faults| faults.fails());
                let began = Instant::now();
                let pending = Pending { segment, op, class, began, started, spoiled };
                self.pending.insert(token, pending);
                None
            }
            Err(error) => Some(DeviceResult::Failed { error }),
        }
    }

    /// What an event means for the store.
    fn result_of(&mut self, pending: &Pending, event: Event) -> DeviceResult<Data> {
        let outcome = match event {
            _ if pending.spoiled => Err(std::io::Error::other("a fault was asked for")),
            Event::Read { mut buffer, result, .. } => match (result, &pending.started) {
                (Ok(bytes), Started::Read { range, zero }) if bytes == buffer.len() => {
                    if let Some(faults) = &self.faults {
                        faults.spoil(&mut buffer);
                    }
                    match device::as_read(buffer, *range, zero) {
                        Some(data) => return DeviceResult::Data { data },
                        None => Err(std::io::Error::other("blocks were asked for in pieces")),
                    }
                }
                (Ok(_), _) => Err(std::io::Error::other("the file ends before its last block")),
                (Err(error), _) => Err(error),
            },
            Event::Wrote { result, .. } => result.map(drop),
            Event::Synced { result, .. } => result,
            other => unreachable!("{other:?} was sorted out before"),
        };
        let Err(error) = outcome else {
            return DeviceResult::Done;
        };
        self.observer.error();
        let device = self.replicas.get(&pending.segment).and_then(|r| r.device.as_ref());
        let doing = device.map(|device| device.doing(&pending.started)).unwrap_or_default();
        tracing::warn!(segment = pending.segment.0, doing, %error, "the disk failed");
        match &pending.started {
            Started::Read { .. } => DeviceResult::Unreadable,
            Started::Write { .. } | Started::Sync { .. } => {
                DeviceResult::Failed { error: format!("{doing}: {error}") }
            }
        }
    }

    fn delay(&self, pending: &Pending) -> Duration {
        match (&self.faults, &pending.started) {
            (Some(faults), Started::Read { .. }) => faults.read_delay(),
            (Some(faults), Started::Write { .. } | Started::Sync { .. }) => faults.write_delay(),
            (None, _) => Duration::ZERO,
        }
    }

    /// An operation has ended, as the store is to see it.
    fn deliver(&mut self, reactor: &mut Reactor, pending: &Pending, result: DeviceResult<Data>) {
        let us = u64::try_from(pending.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        match &pending.started {
            Started::Read { range, .. } => self.observer.read(pending.class, us, range.bytes()),
            Started::Write { range } => self.observer.write(pending.class, us, range.bytes()),
            Started::Sync { .. } => {}
        }
        self.device_done(reactor, pending.segment, pending.op, result);
    }

    fn device_done(
        &mut self,
        reactor: &mut Reactor,
        segment: SegmentId,
        op: u64,
        result: DeviceResult<Data>,
    ) {
        let mut steps = Vec::new();
        self.with_store(segment, |store, table| store.device_done(op, result, table, &mut steps));
        self.take_steps(reactor, segment, steps);
    }

    fn job_ended(&mut self, reactor: &mut Reactor, answer: Answer) {
        let Answer { token, result } = answer;
        let Some(Job { segment, op }) = self.jobs.remove(&token) else {
            return;
        };
        let opened = result.and_then(|files| match files {
            Some(files) => Device::new(self.place(segment), files, reactor).map(Some),
            None => Ok(None),
        });
        let result = match opened {
            Ok(device) => {
                let replica = self.replicas.get_mut(&segment).expect("a replica in use is kept");
                replica.device = device;
                DeviceResult::Done
            }
            Err(DiskError::NoSpace { .. }) => DeviceResult::NoSpace,
            Err(error) => {
                self.observer.error();
                tracing::error!(segment = segment.0, %error, "a replica could not be changed");
                DeviceResult::Failed { error: whole_story(&error) }
            }
        };
        self.device_done(reactor, segment, op, result);
    }
}
