//! A disk on a reactor in a temporary directory, and someone who waits for its answers.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client_lib::Data;
use reactor::{Buffer, Event, Reactor, ReactorConfig};
use smt::map::SegmentConfig;
use smt::payload::{Payload, sums_of};
use smt::server::FoundReplica;
use smt::store::{ReplicaMeta, StoreRequest, StoreResult};
use smt::{BlockRange, Epoch, Geometry, IoId, SegmentId, ServerId, Settings, VolumeId};
use storaged::disk::{DataDir, Disk, DiskError, DiskOptions, Faults, IoClass, IoObserver, Syncer};

pub const SERVER: ServerId = ServerId(1);
pub const SEGMENT: SegmentId = SegmentId(0xAB);
pub const SEGMENT_BYTES: u64 = 4 << 20;

#[derive(Default)]
pub struct Counts {
    pub reads: AtomicU64,
    pub copy_reads: AtomicU64,
    pub writes: AtomicU64,
    pub errors: AtomicU64,
    pub mismatches: AtomicU64,
}

impl IoObserver for Counts {
    fn read(&self, class: IoClass, _us: u64, _bytes: u64) {
        match class {
            IoClass::Client => &self.reads,
            IoClass::Copy => &self.copy_reads,
        }
        .fetch_add(1, Ordering::Relaxed);
    }
    fn write(&self, _class: IoClass, _us: u64, _bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
    fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
    fn mismatch(&self, blocks: u64) {
        self.mismatches.fetch_add(blocks, Ordering::Relaxed);
    }
}

pub struct Bench {
    pub disk: Disk,
    pub reactor: Reactor,
    pub data_dir: DataDir,
    pub found: Vec<FoundReplica>,
    pub faults: Arc<Faults>,
    pub counts: Arc<Counts>,
    next_io: u64,
    /// Answered and not asked about yet.
    pub done: Vec<(SegmentId, IoId, StoreResult<Data>)>,
}

pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory that takes O_DIRECT")
}

pub fn try_open(path: &Path, capacity_bytes: u64, shard: (u64, u64)) -> Result<Bench, DiskError> {
    let data_dir = DataDir::open(path, SERVER, Some(capacity_bytes))?;
    let syncer = Syncer::start(data_dir.space()).expect("a thread");
    let mut reactor = Reactor::new(&ReactorConfig::default()).expect("io_uring");
    let faults = Arc::new(Faults::default());
    let counts = Arc::new(Counts::default());
    let options = DiskOptions {
        shard,
        settings: Settings::default(),
        faults: Some(Arc::clone(&faults)),
        observer: Arc::clone(&counts) as Arc<dyn IoObserver>,
    };
    let (disk, found) = Disk::open(&data_dir, &syncer, options, &mut reactor)?;
    Ok(Bench { disk, reactor, data_dir, found, faults, counts, next_io: 0, done: Vec::new() })
}

pub fn open(path: &Path) -> Bench {
    try_open(path, 1 << 30, (0, 1)).expect("opened")
}

pub fn refusal(path: &Path) -> DiskError {
    match try_open(path, 1 << 30, (0, 1)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

impl Bench {
    pub fn start(&mut self, segment: SegmentId, request: StoreRequest<Data>) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.disk.submit(&mut self.reactor, segment, io, IoClass::Client, request);
        io
    }

    pub fn wait(&mut self, io: IoId) -> StoreResult<Data> {
        let started = Instant::now();
        let mut events: Vec<Event> = Vec::new();
        loop {
            self.disk.drain(&mut self.done);
            if let Some(place) = self.done.iter().position(|(_, id, _)| *id == io) {
                return self.done.swap_remove(place).2;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{io:?} is not answered");
            self.reactor.turn(Some(Duration::from_millis(100)), &mut events).expect("a turn");
            for event in events.drain(..) {
                self.disk.on_event(&mut self.reactor, event);
            }
        }
    }

    /// What was answered meanwhile; waits until there is something, or 100 ms.
    pub fn answered(&mut self) -> Vec<(IoId, StoreResult<Data>)> {
        self.disk.drain(&mut self.done);
        if self.done.is_empty() {
            let mut events: Vec<Event> = Vec::new();
            self.reactor.turn(Some(Duration::from_millis(100)), &mut events).expect("a turn");
            for event in events {
                self.disk.on_event(&mut self.reactor, event);
            }
            self.disk.drain(&mut self.done);
        }
        self.done.drain(..).map(|(_, io, result)| (io, result)).collect()
    }

    pub fn ask(&mut self, request: StoreRequest<Data>) -> StoreResult<Data> {
        self.ask_of(SEGMENT, request)
    }

    pub fn ask_of(&mut self, segment: SegmentId, request: StoreRequest<Data>) -> StoreResult<Data> {
        let io = self.start(segment, request);
        self.wait(io)
    }

    pub fn create(&mut self, segment: SegmentId) -> StoreResult<Data> {
        self.ask_of(segment, StoreRequest::Create { meta: meta(segment, 1) })
    }

    pub fn quiet_ticks(&mut self) {
        for _ in 0..3 {
            self.disk.tick(&mut self.reactor, |_| Some(Vec::new()));
        }
        let started = Instant::now();
        let mut events = Vec::new();
        while !self.disk.is_idle() {
            assert!(started.elapsed() < Duration::from_secs(20), "the disk does not come to rest");
            self.reactor.turn(Some(Duration::from_millis(100)), &mut events).expect("a turn");
            for event in events.drain(..) {
                self.disk.on_event(&mut self.reactor, event);
            }
        }
    }
}

pub fn meta(segment: SegmentId, epoch: u64) -> ReplicaMeta {
    ReplicaMeta {
        config: SegmentConfig {
            segment,
            volume: VolumeId(1),
            index: 0,
            epoch: Epoch(epoch),
            primary: SERVER,
            members: Vec::new(),
            joining: None,
            transfer: None,
            replicas: 2,
            active: Epoch(0),
            geometry: Geometry::of_segment(SEGMENT_BYTES).expect("a power of two"),
            writer: 0,
        },
        joining: None,
    }
}

pub fn blocks(fill: u8, count: usize) -> Data {
    let mut buffer = Buffer::zeroed(count * 4096);
    for (i, block) in buffer.chunks_mut(4096).enumerate() {
        block.fill(fill.wrapping_add(u8::try_from(i % 200).expect("small")));
    }
    Data::new(buffer.share()).expect("whole blocks")
}

pub fn write(segment: SegmentId, first: u32, data: &Data) -> StoreRequest<Data> {
    let sums = sums_of(data, segment, first);
    StoreRequest::Write { range: BlockRange::new(first, data.blocks()), data: data.clone(), sums }
}

pub fn read(first: u32, count: u32) -> StoreRequest<Data> {
    StoreRequest::Read { range: BlockRange::new(first, count) }
}

pub fn expect_data(result: StoreResult<Data>, wanted: &Data) {
    match result {
        StoreResult::Data { data, .. } => assert!(data == *wanted, "other data"),
        other => panic!("{other:?}"),
    }
}

pub fn file(directory: &Path, extension: &str) -> PathBuf {
    directory.join("segments").join(format!("00000000000000ab.{extension}"))
}

pub fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the file is there");
    file.write_all_at(bytes, at).expect("written");
}
