//! Scrub: a thread that reads every replica of this server at leisure, on tokio-uring, and hands
//! what looks wrong to the shard.
//!
//! Invariant: it changes nothing. It has descriptors of its own, opened for reading; what a block
//! should hold it asks the shard, and what is wrong the brain repairs (R3), by its own rules. At
//! most one run goes on at a time: a periodic one waits while an operator's is under way.
//!
//! Leaves to others: the truth about a block (`disk`, behind the store's locks), repair and the
//! comparison of members (`smt`), who may ask (`control`).

mod ask;
mod pace;
mod progress;
mod reader;
mod run;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smt::VolumeId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use ask::{Ask, Line, ReplicaAt};
pub use status::{Counts, Run, State, Status, Step, Steps};

use crate::control::unix_ms;
use crate::telemetry::latency::IoStats;
use progress::Progress;

/// Megabytes (10^6 bytes) a second unless the configuration says otherwise. A drive streams more
/// than ten times that, and 38 TB are read in a week.
pub const SCRUB_MBPS_DEFAULT: u64 = 64;

/// How the scrubber of a server is set up.
#[derive(Clone, Debug)]
pub struct ScrubConfig {
    /// The server's directory, and the one of its replicas.
    pub data_dir: PathBuf,
    pub segments: PathBuf,
    /// None: only when an operator asks.
    pub period: Option<Duration>,
    pub mbps: u64,
}

/// What an operator asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// None: every volume.
    pub volume: Option<(VolumeId, String)>,
    /// None: as configured.
    pub max_mbps: Option<u64>,
    pub steps: Steps,
}

#[derive(Debug)]
enum Order {
    Start { number: u64, wish: Wish },
    Stop,
}

type Shared = Arc<Mutex<Status>>;

/// The handle to the thread. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Scrubber {
    shared: Shared,
    orders: UnboundedSender<Order>,
    mbps: u64,
}

impl Scrubber {
    /// Starts the thread. It lives as long as the process.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(config: ScrubConfig, line: Line, stats: Arc<IoStats>) -> std::io::Result<Self> {
        let (scrubber, orders) = Self::unattended(config.mbps);
        let shared = Arc::clone(&scrubber.shared);
        std::thread::Builder::new().name("scrubber".to_owned()).spawn(move || {
            let due_unix_ms = unix_ms().saturating_add(config.period.map_or(u64::MAX, millis));
            let progress = Progress::load(&config.data_dir, due_unix_ms);
            let mut worker = run::Worker::new(config, line, stats, shared, orders, progress);
            tokio_uring::start(async move { worker.work().await });
        })?;
        Ok(scrubber)
    }

    /// A handle without a thread: orders are taken and nobody carries them out.
    fn unattended(mbps: u64) -> (Scrubber, UnboundedReceiver<Order>) {
        let (orders, ordered) = unbounded_channel();
        (Scrubber { shared: Shared::default(), orders, mbps }, ordered)
    }

    /// A handle for a control plane without a data plane behind it.
    #[must_use]
    pub fn absent() -> Scrubber {
        Self::unattended(SCRUB_MBPS_DEFAULT).0
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.lock().expect("nobody panics while holding the status").clone()
    }

    /// Orders a run; its number.
    ///
    /// # Errors
    /// The run of an operator that has not ended.
    pub fn order(&self, wish: Wish) -> Result<u64, Box<Run>> {
        let mut status = self.shared.lock().expect("nobody panics while holding the status");
        if let Some(run) = status.operator.as_ref().filter(|run| run.is_running()) {
            return Err(Box::new(run.clone()));
        }
        let number = status.operator.as_ref().map_or(1, |run| run.number + 1);
        let volume = wish.volume.as_ref().map(|(_, name)| name.clone());
        // Comparing what has just been read is the other half of the same scrub.
        let first_half = status.operator.take().filter(|last| {
            let read = (last.steps, last.state) == (Steps::Read, State::Done);
            read && wish.steps == Steps::Compare && last.volume == volume
        });
        let step = match wish.steps {
            Steps::Read | Steps::All => Step::Reading,
            Steps::Compare => Step::Comparing,
        };
        status.operator = Some(Run {
            number,
            volume,
            steps: wish.steps,
            state: State::Running(step),
            max_mbps: wish.max_mbps.unwrap_or(self.mbps),
            started_unix_ms: first_half.as_ref().map_or_else(unix_ms, |run| run.started_unix_ms),
            finished_unix_ms: None,
            counts: first_half.map(|run| run.counts).unwrap_or_default(),
        });
        // The thread lives as long as the process.
        drop(self.orders.send(Order::Start { number, wish }));
        Ok(number)
    }

    /// Ends what is under way; whether anything was.
    pub fn stop(&self) -> bool {
        let running = self.status().latest().is_some_and(Run::is_running);
        if running {
            drop(self.orders.send(Order::Stop));
        }
        running
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
