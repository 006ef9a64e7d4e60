//! World: servers, clients, a network, disks and a log, all run by one queue of events.
//!
//! Invariant: everything that happens is an event of the queue, ordered by time and then by when
//! it was scheduled; every choice is drawn from the seed's generator. So a seed is a run.
//!
//! Split by part: `server` and `client` are the hands of the two brains, `attach` how clients come by the volume,
//! `consensus` is the log,
//! `links` the connections, `nemesis`, `damage` and `targets` the faults, and `judge` tells the oracle.

mod attach;
mod client;
mod consensus;
mod damage;
mod judge;
mod links;
mod log;
mod nemesis;
mod scene;
mod scrub;
mod server;
mod targets;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use smt::SegmentId;
use smt::config::MS;

pub use client::Stage;
pub use consensus::Changed;
pub use scene::{Moment, Scene};

use crate::network::{Network, Side};
use crate::oracle::Violation;
use crate::oracle::active::Active;
use crate::oracle::attach::Attachments;
use crate::oracle::history::History;
use crate::oracle::served::Served;
use crate::plan::{Access, Plan};
use crate::rng::Rng;
use crate::trace::Trace;
use attach::Granted;
use client::ClientHost;
use consensus::Consensus;
use damage::Damages;
use scene::Watch;
use scrub::Scrub;
use server::Host;

/// Something scheduled. Servers and clients are meant by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Tick {
        host: usize,
        life: u64,
    },
    Idle {
        host: usize,
        life: u64,
    },
    Deliver {
        connection: usize,
        to: Side,
    },
    /// A side of a connection may have waited long enough for a blocked path.
    Timeout {
        connection: usize,
        side: Side,
    },
    Dial {
        from: usize,
        to: usize,
        life: u64,
    },
    Device {
        host: usize,
        life: u64,
        segment: SegmentId,
        op: u64,
    },
    MapPush {
        host: usize,
        life: u64,
    },
    Register {
        host: usize,
        life: u64,
    },
    Commit {
        ticket: u64,
    },
    Orchestrate,
    Strike,
    /// Those who look for rot look.
    Scrub,
    Heal {
        fault: u64,
    },
    Resume {
        host: usize,
        life: u64,
    },
    Restart {
        host: usize,
        life: u64,
    },
    /// The last move of a usurpation: the restarted backup is proposed.
    Usurp {
        segment: SegmentId,
        host: usize,
    },
    ClientTick {
        client: usize,
    },
    Wake {
        client: usize,
    },
    Think {
        client: usize,
    },
    /// A stalled connection is given up.
    GiveUp {
        connection: usize,
        side: Side,
    },
    Delta {
        client: usize,
    },
    Crash {
        host: usize,
        life: u64,
    },
    /// Every machine loses power.
    Blackout,
    /// A client that was given the volume opens it.
    Open {
        granted: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheduled {
    at: u64,
    order: u64,
    what: What,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What a run saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    pub ops_done: u64,
    pub ops_failed: u64,
    pub attachments: u64,
    pub crashes: u64,
    pub activations: u64,
    pub failovers: u64,
    pub promotes: u64,
    pub promotes_of_primary: u64,
    pub transfers: u64,
    pub evictions: u64,
    pub aborts: u64,
    pub mismatches: u64,
    /// Comparisons of members that came to an end.
    pub compared: u64,
    /// Copies damaged once faults had stopped.
    pub planted: u64,
    pub damaged: u64,
    pub faulted: u64,
    pub undecided: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Counts) {
        for (mine, (_, theirs)) in self.fields_mut().into_iter().zip(other.fields()) {
            *mine += theirs;
        }
    }

    /// Each count with its name.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, u64); 18] {
        let Counts {
            steps,
            ops_done,
            ops_failed,
            attachments,
            crashes,
            activations,
            failovers,
            promotes,
            promotes_of_primary,
            transfers,
            evictions,
            aborts,
            mismatches,
            compared,
            planted,
            damaged,
            faulted,
            undecided,
        } = *self;
        [
            ("steps", steps),
            ("ops", ops_done),
            ("failed ops", ops_failed),
            ("attachments", attachments),
            ("crashes", crashes),
            ("activations", activations),
            ("failovers", failovers),
            ("promotes", promotes),
            ("of a primary", promotes_of_primary),
            ("transfers", transfers),
            ("evictions", evictions),
            ("aborts", aborts),
            ("mismatches", mismatches),
            ("compared", compared),
            ("planted", planted),
            ("damaged blocks", damaged),
            ("faulted replicas", faulted),
            ("undecided blocks", undecided),
        ]
    }

    fn fields_mut(&mut self) -> [&mut u64; 18] {
        [
            &mut self.steps,
            &mut self.ops_done,
            &mut self.ops_failed,
            &mut self.attachments,
            &mut self.crashes,
            &mut self.activations,
            &mut self.failovers,
            &mut self.promotes,
            &mut self.promotes_of_primary,
            &mut self.transfers,
            &mut self.evictions,
            &mut self.aborts,
            &mut self.mismatches,
            &mut self.compared,
            &mut self.planted,
            &mut self.damaged,
            &mut self.faulted,
            &mut self.undecided,
        ]
    }
}

pub struct World {
    plan: Plan,
    rng: Rng,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    net: Network,
    hosts: Vec<Host>,
    clients: Vec<ClientHost>,
    consensus: Consensus,
    /// Faults strike.
    at_war: bool,
    /// Paths each running fault blocks.
    blocks: BTreeMap<u64, Vec<(usize, usize)>>,
    next_fault: u64,
    history: History,
    active: Active,
    attachments: Attachments,
    scrub: Scrub,
    served: Served,
    damages: Damages,
    watch: Watch,
    granted: Vec<Granted>,
    /// Attachments made so far, sharers counted once.
    generation: u64,
    /// The identity the next client process gets.
    next_client: u64,
    pub counts: Counts,
    pub trace: Trace,
    pub violation: Option<Violation>,
}

impl World {
    #[must_use]
    pub fn new(plan: Plan, trace: bool) -> World {
        let mut consensus = Consensus::new(&plan);
        if plan.access == Access::Exclusive {
            consensus.attach_first();
        }
        let mut rng = Rng::new(plan.seed ^ 0x0123_4567_89ab_cdef);
        let mut history = History::default();
        for config in consensus.configs() {
            for block in 0..plan.geometry.segment_blocks {
                history.add_block((config.segment, block));
            }
        }
        let hosts = (0..plan.servers).map(|index| Host::new(index, &plan, &mut rng)).collect();
        let clients =
            (0..plan.clients).map(|index| ClientHost::new(index, &plan, &consensus)).collect();
        let net = Network::new(plan.servers + plan.clients, plan.latency_ns);
        let mut world = World {
            rng,
            now: MS,
            order: 0,
            queue: BinaryHeap::new(),
            net,
            hosts,
            clients,
            consensus,
            at_war: true,
            blocks: BTreeMap::new(),
            next_fault: 0,
            history,
            active: Active::default(),
            attachments: Attachments::default(),
            scrub: Scrub::of(&plan),
            damages: Damages::default(),
            watch: Watch::default(),
            served: Served::default(),
            granted: Vec::new(),
            generation: u64::from(plan.access == Access::Exclusive),
            next_client: u64::try_from(plan.clients).expect("a handful") + 1,
            counts: Counts::default(),
            trace: Trace::new(trace),
            violation: None,
            plan,
        };
        for host in 0..world.hosts.len() {
            world.boot(host);
        }
        for client in 0..world.clients.len() {
            world.start_client(client);
        }
        world.after(20 * MS, What::Orchestrate);
        let first = 20 * MS + world.rng.below(world.plan.fault_every_ns);
        world.after(first, What::Strike);
        world.start_scrub();
        world
    }

    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now
    }

    fn after(&mut self, delay_ns: u64, what: What) {
        self.at(self.now + delay_ns, what);
    }

    fn at(&mut self, at: u64, what: What) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    /// Takes the next event. Nothing happens any more once a promise was broken.
    pub fn step(&mut self) {
        let Some(Reverse(Scheduled { at, order, what })) = self.queue.pop() else {
            return;
        };
        self.now = self.now.max(at);
        self.counts.steps += 1;
        self.trace.fold(at ^ order.rotate_left(40));
        if let Some(host) = self.host_of(what)
            && let Some(waiting) = &mut self.hosts[host].paused
        {
            waiting.push(what);
            return;
        }
        match what {
            What::Tick { host, life } => self.tick(host, life),
            What::Idle { host, life } => self.idle(host, life),
            What::Deliver { connection, to } => self.deliver(connection, to),
            What::Timeout { connection, side } => self.timeout(connection, side),
            What::Dial { from, to, life } => self.dial(from, to, life),
            What::Device { host, life, segment, op } => self.device_done(host, life, segment, op),
            What::MapPush { host, life } => self.push_map(host, life),
            What::Register { host, life } => self.register(host, life),
            What::Commit { ticket } => self.commit(ticket),
            What::Orchestrate => self.orchestrate(),
            What::Strike => self.strike(),
            What::Scrub => self.scrub(),
            What::Heal { fault } => self.heal(fault),
            What::Resume { host, life } => self.resume(host, life),
            What::Restart { host, life } => self.restart(host, life),
            What::Usurp { segment, host } => self.usurp(segment, host),
            What::ClientTick { client } => self.client_tick(client),
            What::Wake { client } => self.wake(client),
            What::GiveUp { connection, side } => self.give_up(connection, side, 0),
            What::Think { client } => self.think(client),
            What::Delta { client } => self.deliver_delta(client),
            What::Crash { host, life } => self.crash_now(host, life),
            What::Blackout => self.blackout(),
            What::Open { granted } => self.open_volume(granted),
        }
    }

    /// The server whose process has to run for this to happen.
    fn host_of(&self, what: What) -> Option<usize> {
        match what {
            What::Tick { host, .. }
            | What::Idle { host, .. }
            | What::Device { host, .. }
            | What::MapPush { host, .. }
            | What::Register { host, .. } => Some(host),
            What::Deliver { connection, to } => {
                let place = self.net.get(connection).place(to);
                (place < self.hosts.len()).then_some(place)
            }
            What::Timeout { connection, side } => {
                let place = self.net.get(connection).place(side);
                (place < self.hosts.len()).then_some(place)
            }
            What::Dial { from, .. } => (from < self.hosts.len()).then_some(from),
            What::Commit { .. }
            | What::Orchestrate
            | What::Strike
            | What::Scrub
            | What::Heal { .. }
            | What::Resume { .. }
            | What::Restart { .. }
            | What::Usurp { .. }
            | What::ClientTick { .. }
            | What::Wake { .. }
            | What::GiveUp { .. }
            | What::Think { .. }
            | What::Delta { .. }
            | What::Crash { .. }
            | What::Blackout
            | What::Open { .. } => None,
        }
    }

    fn say(&mut self, segment: Option<SegmentId>, line: impl FnOnce() -> String) {
        let now = self.now;
        self.trace.say(segment, || format!("{:>9}.{:03} ", now / MS, now % MS / 1_000) + &line());
    }

    fn broken(&mut self, violation: Violation) {
        if self.violation.is_none() {
            self.say(violation.segment, || format!("VIOLATION {violation}"));
            self.violation = Some(violation);
        }
    }

    fn judge(&mut self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.broken(violation);
        }
    }

    /// Whether every segment has a primary that the map knows to serve.
    fn is_served(&self) -> bool {
        self.consensus.configs().all(|c| c.active == c.epoch)
    }

    /// Faults stop, and everything that was broken on purpose is whole again.
    pub fn make_peace(&mut self) {
        self.at_war = false;
        self.say(None, || "--- faults stop".to_owned());
        let faults: Vec<u64> = self.blocks.keys().copied().collect();
        for fault in faults {
            self.heal(fault);
        }
        self.consensus.outage_until = 0;
        self.mend_damage();
        for host in 0..self.hosts.len() {
            let h = &mut self.hosts[host];
            h.lag_until = 0;
            h.slow_until = 0;
            h.hung_until = 0;
            h.io_error = false;
            h.no_space = false;
            h.no_space_for_writes = false;
            let life = h.life;
            self.resume(host, life);
            let life = self.hosts[host].life;
            self.restart(host, life);
        }
    }
}
