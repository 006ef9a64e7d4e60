//! Moves: an operator who moves segments about all the while.
//!
//! Invariant: it only asks. What is refused, because the segment is moving already or the epoch
//! has moved on, is counted and not an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use sim::rng::Rng;

use crate::api::{Api, Segment};

/// Between two orders.
const GAP_MS: (u64, u64) = (400, 2_000);

#[derive(Debug, Default)]
pub struct Counts {
    pub ordered: AtomicUsize,
    pub refused: AtomicUsize,
}

pub struct Moves {
    pub counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Moves {
    pub fn start(api: Api, mut rng: Rng) -> Moves {
        let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(rng.range(GAP_MS.0, GAP_MS.1)));
                if let Some(taken) = order(&api, &mut rng) {
                    let count = if taken { &counted.ordered } else { &counted.refused };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Moves { counts, stop, thread }
    }

    /// No order follows.
    pub fn finish(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only asked");
        self.counts
    }
}

/// One order; whether it was taken. None: there was nothing to order, or nobody to ask.
fn order(api: &Api, rng: &mut Rng) -> Option<bool> {
    let ids: Vec<u8> = (1..=u8::try_from(api.urls().len()).ok()?).collect();
    let asked = *rng.pick(&ids)?;
    let (_, segments) = api.segments(|id| id == asked);
    let movable: Vec<&Segment> = segments
        .iter()
        .filter(|segment| !segment.is_migrating && segment.in_sync.len() < ids.len())
        .collect();
    let segment = *rng.pick(&movable)?;
    let targets: Vec<u8> = ids.iter().copied().filter(|id| !segment.in_sync.contains(id)).collect();
    let to = *rng.pick(&targets)?;
    let from = *rng.pick(&segment.in_sync)?;
    let route = format!("/v1/segments/{}/{}/move", segment.volume, segment.index);
    let (status, _) = api.post(asked, &route, &json!({ "from": from, "to": to })).ok()?;
    Some(status == 202)
}
