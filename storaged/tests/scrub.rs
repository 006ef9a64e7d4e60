//! The scrubber against real files and a shard that is played: what it counts, what goes first,
//! and where a restart goes on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reactor::{Reactor, ReactorConfig};
use smt::server::Comparison;
use smt::wire::checksum::block_sum;
use smt::{SegmentId, VolumeId};
use storaged::disk::{PAGE_BYTES, replica_path};
use storaged::scrub::{Ask, Line, ReplicaAt, Run, ScrubConfig, Scrubber, State, Steps, Wish};
use storaged::telemetry::latency::IoStats;
use tempfile::TempDir;

const BLOCKS: u32 = 256;
const PATIENCE: Duration = Duration::from_secs(20);

/// What the played shard knows and does.
#[derive(Default)]
struct Play {
    replicas: Vec<ReplicaAt>,
    /// What comparisons of a segment come to, the first first; then they are equal.
    comparisons: BTreeMap<SegmentId, Vec<Comparison>>,
    suspected: Vec<SegmentId>,
    begun: Vec<SegmentId>,
    /// Leaves when its reading begins.
    leaving: Option<SegmentId>,
}

struct Stage {
    directory: TempDir,
    play: Arc<Mutex<Play>>,
}

fn content(segment: SegmentId, block: u32) -> [u8; 4096] {
    [u8::try_from((segment.0 * 31 + u64::from(block)) % 251).expect("small"); 4096]
}

impl Stage {
    /// Segments 1 to `count`, of volume 1 if odd and 2 if even, all of them led here.
    fn new(count: u64) -> Stage {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let play = Arc::new(Mutex::new(Play::default()));
        for id in 1..=count {
            let segment = SegmentId(id);
            let bytes: Vec<u8> = (0..BLOCKS).flat_map(|block| content(segment, block)).collect();
            fs::write(replica_path(directory.path(), segment, "data"), bytes).expect("written");
            let table = vec![0; PAGE_BYTES * 2];
            fs::write(replica_path(directory.path(), segment, "table"), table).expect("written");
            let volume = VolumeId(2 - id % 2);
            let replica = ReplicaAt { segment, volume, blocks: BLOCKS, leads: true };
            play.lock().expect("nobody panics with it").replicas.push(replica);
        }
        Stage { directory, play }
    }

    fn data(&self, segment: u64) -> PathBuf {
        replica_path(self.directory.path(), SegmentId(segment), "data")
    }

    fn flip(&self, segment: u64, block: u32) {
        let file = fs::OpenOptions::new().write(true).open(self.data(segment)).expect("there");
        file.write_all_at(&[0xEE], u64::from(block) * 4096 + 9).expect("written");
    }

    /// A life of the scrubber. The played shard is its own, and ends with it.
    fn start(&self, period: Option<Duration>, mbps: u64) -> Scrubber {
        let (asks, asked) = crossbeam::channel::unbounded();
        let (ready, made) = std::sync::mpsc::channel();
        let (play, directory) = (Arc::clone(&self.play), self.directory.path().to_owned());
        std::thread::spawn(move || {
            // Its waker is used as long as there are asks.
            let reactor = Reactor::new(&ReactorConfig::default()).expect("io_uring");
            ready.send(reactor.waker()).expect("somebody waits for it");
            for ask in asked {
                answer(&mut play.lock().expect("nobody panics with it"), &directory, ask);
            }
        });
        let line = Line::new(asks, made.recv().expect("the thread lives"));
        let directory = self.directory.path().to_owned();
        let config = ScrubConfig { data_dir: directory.clone(), segments: directory, period, mbps };
        Scrubber::start(config, line, Arc::new(IoStats::new())).expect("a thread")
    }

    fn play(&self) -> std::sync::MutexGuard<'_, Play> {
        self.play.lock().expect("nobody panics with it")
    }
}

fn answer(play: &mut Play, directory: &Path, ask: Ask) {
    let is_here = |play: &Play, segment| play.replicas.iter().any(|r| r.segment == segment);
    let path = |segment| replica_path(directory, segment, "data");
    match ask {
        Ask::List { answer } => drop(answer.send(play.replicas.clone())),
        Ask::Begin { segment, chunk_blocks, answer } => {
            play.begun.push(segment);
            if play.leaving == Some(segment) {
                play.replicas.retain(|replica| replica.segment != segment);
            }
            let chunks = vec![true; usize::try_from(BLOCKS / chunk_blocks).expect("small")];
            drop(answer.send(is_here(play, segment).then_some((0, chunks))));
        }
        Ask::Judge { segment, first, sums, answer } => {
            let bad = sums.iter().zip(first..).filter(|(sum, block)| {
                **sum != Some(block_sum(segment, *block, &content(segment, *block)))
            });
            drop(answer.send(Some(bad.map(|(_, block)| block).collect())));
        }
        Ask::Check { segment, blocks, suspect, new: _, answer } => {
            let file = fs::OpenOptions::new().read(true).write(true).open(path(segment));
            let file = file.expect("it is there");
            let mut bad = Vec::new();
            for block in blocks {
                let (wanted, at) = (content(segment, block), u64::from(block) * 4096);
                let mut found = [0; 4096];
                file.read_exact_at(&mut found, at).expect("it can be read");
                if found != wanted {
                    bad.push(block);
                    if suspect {
                        file.write_all_at(&wanted, at).expect("repaired");
                    }
                }
            }
            if suspect && !bad.is_empty() {
                play.suspected.push(segment);
            }
            drop(answer.send(Some(bad)));
        }
        Ask::Table { answer, .. } => drop(answer.send(Some(Vec::new()))),
        Ask::Compare { segment, answer, .. } => {
            let script = play.comparisons.get_mut(&segment).filter(|script| !script.is_empty());
            let outcome = script.map_or(Comparison::Equal, |script| script.remove(0));
            drop(answer.send(outcome));
        }
    }
}

fn wish(volume: Option<u64>) -> Wish {
    let volume = volume.map(|id| (VolumeId(id), format!("vol{id}")));
    Wish { volume, max_mbps: Some(10_000), steps: Steps::All }
}

#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn finished(scrubber: &Scrubber) -> Run {
    wait_for("the end of the run", || scrubber.status().operator.filter(|run| !run.is_running()))
}

#[test]
fn rot_is_found_once_repaired_and_counted_and_other_volumes_are_let_be() {
    let stage = Stage::new(4);
    for (segment, block) in [(1, 0), (1, 255), (3, 64), (2, 9)] {
        stage.flip(segment, block);
    }
    let differ = [
        Comparison::Busy,
        Comparison::Repaired { blocks: vec![1, 2] },
        Comparison::Unresolved { blocks: vec![70] },
    ];
    stage.play().comparisons.insert(SegmentId(3), differ.into());
    let scrubber = stage.start(None, 64);
    assert_eq!(scrubber.order(wish(Some(1))).expect("nothing is under way"), 1);
    let run = finished(&scrubber);
    let counts = run.counts;
    assert_eq!((run.state, run.volume.as_deref()), (State::Done, Some("vol1")));
    assert_eq!((counts.blocks_bad, counts.blocks_repaired, counts.blocks_unrepaired), (3, 3, 0));
    assert_eq!((counts.blocks_diverged, counts.blocks_unresolved), (3, 1));
    assert_eq!((counts.segments_total, counts.segments_done), (2, 2));
    assert_eq!((counts.bytes_total, counts.bytes_done), (2 << 20, 2 << 20));
    assert!(counts.bytes_read >= 2 << 20);
    assert_eq!(stage.play().suspected, [1, 1, 3].map(SegmentId), "each chunk, and no more");
    assert!(fs::read(stage.data(2)).expect("there")[9 * 4096 + 9] == 0xEE, "of another volume");
    // The two halves of a scrub, ordered one after the other, tell of both.
    let half = |steps| Wish { steps, ..wish(Some(2)) };
    scrubber.order(half(Steps::Read)).expect("it has ended");
    let ended = |number| {
        wait_for("the next", || {
            scrubber.status().operator.filter(|run| run.number == number && !run.is_running())
        })
    };
    assert_eq!((ended(2).counts.blocks_bad, stage.play().suspected.len()), (1, 4));
    stage.play().comparisons.insert(SegmentId(2), vec![Comparison::Repaired { blocks: vec![3] }]);
    scrubber.order(half(Steps::Compare)).expect("it has ended");
    let counts = ended(3).counts;
    assert_eq!((counts.blocks_bad, counts.blocks_diverged, counts.bytes_done), (1, 1, 2 << 20));
    scrubber.order(wish(Some(1))).expect("it has ended");
    assert_eq!(
        wait_for("the second", || {
            scrubber.status().operator.filter(|run| run.number == 4 && !run.is_running())
        })
        .counts
        .blocks_bad,
        0
    );
}

#[test]
fn a_replica_that_leaves_is_passed_over() {
    let stage = Stage::new(3);
    stage.play().leaving = Some(SegmentId(2));
    fs::remove_file(stage.data(2)).expect("it is there");
    let scrubber = stage.start(None, 64);
    scrubber.order(wish(None)).expect("nothing is under way");
    let run = finished(&scrubber);
    assert_eq!(
        (run.state, run.counts.segments_unread, run.counts.segments_done),
        (State::Done, 0, 3)
    );
    // One that should be there, and is not, is another matter.
    fs::remove_file(stage.data(3)).expect("it is there");
    scrubber.order(wish(None)).expect("it has ended");
    let again = |run: &Run| run.number == 2 && !run.is_running();
    let run = wait_for("the second", || scrubber.status().operator.filter(again));
    assert_eq!(run.counts.segments_unread, 1);
}

#[test]
fn an_operator_goes_first_and_can_stop_a_run() {
    let stage = Stage::new(3);
    // A week ago: due at once, and too slow to end.
    let scrubber = stage.start(Some(Duration::ZERO), 1);
    let running = |run: Option<Run>| run.filter(Run::is_running);
    wait_for("the periodic run", || running(scrubber.status().periodic));
    scrubber.order(wish(Some(2))).expect("only a periodic run is under way");
    assert_eq!(finished(&scrubber).counts.bytes_done, 1 << 20);
    wait_for("the periodic run, again", || running(scrubber.status().periodic));
    let slow = Wish { max_mbps: Some(1), ..wish(None) };
    scrubber.order(slow).expect("the other has ended");
    let refused = scrubber.order(wish(None)).expect_err("one is under way");
    assert_eq!(refused.number, 2);
    assert!(scrubber.stop());
    let stopped = wait_for("the end", || {
        scrubber.status().operator.filter(|run| run.number == 2 && !run.is_running())
    });
    assert_eq!(stopped.state, State::Stopped);
}

#[test]
fn a_periodic_run_goes_on_where_the_last_life_left_it() {
    let stage = Stage::new(4);
    let scrubber = stage.start(Some(Duration::ZERO), 2);
    wait_for("two segments", || {
        let run = scrubber.status().periodic?;
        (run.counts.segments_done >= 2).then_some(())
    });
    // An order makes it save where it is; a kill would cost five seconds' worth.
    scrubber.order(wish(Some(9))).expect("only a periodic run is under way");
    finished(&scrubber);
    let text = fs::read_to_string(stage.directory.path().join("SCRUB")).expect("it is kept");
    let kept: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let done = kept["unfinished"]["done_until"].as_u64().expect("it is not finished");
    assert!((2..4).contains(&done), "the test wants it cut short: {text}");
    // A copy of what it left, for the next life: the last one still runs.
    let next = Stage::new(4);
    fs::write(next.directory.path().join("SCRUB"), text).expect("it can be copied");
    let scrubber = next.start(Some(Duration::from_secs(3600)), 10_000);
    wait_for("the end", || scrubber.status().last_completed_unix_ms);
    let second = next.play().begun.clone();
    assert_eq!(second.first().map(|s| s.0), Some(done + 1), "{second:?}");
    let run = wait_for("the run", || scrubber.status().periodic.filter(|r| !r.is_running()));
    assert_eq!((run.counts.segments_done, run.counts.bytes_done), (4, 4 << 20));
    let due = scrubber.status().next_due_unix_ms.expect("in an hour");
    assert!(due > run.finished_unix_ms.expect("it ended") + 3_000_000);
}
