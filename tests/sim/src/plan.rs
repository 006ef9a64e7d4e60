//! Plan: what one seed is made of: how large the world is, how fast, and which faults strike it.
//!
//! Swarm mode: each seed takes a random subset of the faults at random rates, because faults hide
//! each other (a world that crashes all the time never gets as far as a promotion).

use smt::client::ClientSettings;
use smt::config::MS;
use smt::{Geometry, Mutant, Settings};

use crate::rng::Rng;

/// Microseconds in nanoseconds.
pub const US: u64 = 1_000;

/// The faults of the nemesis, each with how often it is chosen (0: never in this seed).
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// kill -9.
    pub kill: u32,
    /// Power cut: what was not synced is kept or lost block by block.
    pub power_cut: u32,
    /// SIGSTOP for a while.
    pub pause: u32,
    /// A connection is reset, with a part of its bytes still to come.
    pub reset: u32,
    /// A connection stalls, is given up, and what stood in it comes after its successor's.
    pub stall: u32,
    /// A path or a whole server is blocked for a while, one way or both.
    pub partition: u32,
    /// A client is cut from a server.
    pub client_partition: u32,
    /// A client dies, and another one takes its blocks over; or, where the volume has one writer,
    /// somebody else takes it over by force.
    pub client_crash: u32,
    /// Consensus commits nothing for a while.
    pub outage: u32,
    /// A server hears of the map late.
    pub lag: u32,
    /// A wrong proposal to replace a member or the primary (S9), of any server.
    pub suspicion: u32,
    /// A migration between servers chosen at random.
    pub migration: u32,
    /// A running migration is given up.
    pub abort: u32,
    /// A wish to hand the primary over.
    pub transfer: u32,
    /// A device operation fails.
    pub io_error: u32,
    /// A block at rest is damaged.
    pub rot: u32,
    /// A server's disk is slow for a while.
    pub slow_disk: u32,
    /// The primary is cut off, and a backup restarted and elected at once (L3, L4, R2).
    pub usurp: u32,
    /// A bit of a table entry at rest is flipped.
    pub entry_rot: u32,
    /// A device says that a write is done, and nothing was written.
    pub lost_write: u32,
    /// A write leaves its block half new.
    pub torn_write: u32,
    /// A write lands on another block of the file.
    pub misdirected: u32,
    /// Some reads of a disk fail, and later ones do not.
    pub read_error: u32,
    /// A disk is full when a file, or a block, is to be written.
    pub no_space: u32,
    /// A disk answers nothing for a while.
    pub hung_disk: u32,
    /// The primary is stopped until about the end of its leases, and replaced meanwhile.
    pub lease_end: u32,
    /// Every machine loses power at once.
    pub blackout: u32,
}

/// Who may write the volume (A5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, each to its own blocks, and nobody ever attached.
    Open,
    /// One at a time, everywhere, and the others read.
    Exclusive,
    /// All who attached to share it, each to its own blocks.
    Shared,
}

/// Everything a seed decides before its world starts.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub servers: usize,
    pub clients: usize,
    pub access: Access,
    pub segments: u32,
    pub replicas: u8,
    pub geometry: Geometry,
    pub settings: Settings,
    pub client: ClientSettings,
    pub faults: Faults,
    /// Typical time between two faults.
    pub fault_every_ns: u64,
    pub latency_ns: u64,
    pub disk_ns: u64,
    pub commit_ns: u64,
    pub push_ns: u64,
    pub tick_ns: u64,
    /// How far clocks may run wrong.
    pub drift_ppm: u32,
    /// How late bytes of a closed connection may come.
    pub residue_ns: u64,
    /// Probability that a proposal, or its way to the log, is lost.
    pub lost_proposal_ppm: u32,
    /// Probability that a member is cut off while a Promote is under way.
    pub cut_at_promote_ppm: u32,
    /// Probability that the old primary crashes right after a Promote.
    pub crash_after_promote_ppm: u32,
    /// Probability that a block whose write was not synced is torn by a power cut.
    pub torn_ppm: u32,
    /// Probability that a new primary dies when it has told a member to start.
    pub crash_before_active_ppm: u32,
    /// Probability that a joiner dies when it is told that Sync starts.
    pub kill_joiner_ppm: u32,
    /// Probability that all power goes when an activation asks, or mends, a member.
    pub blackout_ppm: u32,
    /// Probability that a client that attaches reads the map from a server that is behind.
    pub stale_map_ppm: u32,
    /// Probability that the connection is reset on which an activation mends a member.
    pub reset_at_fix_ppm: u32,
    /// Operations of one client at once.
    pub inflight_max: usize,
    pub think_ns: u64,
    /// Blocks in a row that one client owns.
    pub run_blocks: u64,
    /// Blocks of the volume most operations fall on.
    pub hot_blocks: u64,
    /// Out of 16 operations, how many write.
    pub writes_of_16: u64,
}

impl Plan {
    /// A world of the seed's pace in which nothing goes wrong: four servers, three replicas.
    #[must_use]
    pub fn quiet(seed: u64) -> Plan {
        Plan {
            servers: 4,
            replicas: 3,
            segments: 2,
            access: Access::Open,
            faults: Faults::default(),
            drift_ppm: 0,
            residue_ns: 0,
            lost_proposal_ppm: 0,
            cut_at_promote_ppm: 0,
            crash_after_promote_ppm: 0,
            torn_ppm: 0,
            crash_before_active_ppm: 0,
            kill_joiner_ppm: 0,
            blackout_ppm: 0,
            stale_map_ppm: 0,
            reset_at_fix_ppm: 0,
            ..Plan::of_seed(seed, None)
        }
    }

    #[must_use]
    pub fn of_seed(seed: u64, mutant: Option<Mutant>) -> Plan {
        let mut rng = Rng::new(seed);
        let r = &mut rng;
        let replicas = if r.below(3) == 0 { 2 } else { 3 };
        let servers = r.range(if replicas == 2 { 3 } else { 4 }, 5);
        let latency_ns = r.range(60, 400) * US;
        let lease_ns = r.range(40, 80) * MS;
        let settings = Settings {
            lease_ns,
            lease_renew_ns: lease_ns / 5,
            ack_timeout_ns: lease_ns,
            own_disk_timeout_ns: lease_ns * 2,
            suspect_ns: lease_ns * r.range(8, 16) / 10,
            suspect_closed_ns: r.range(5, 20) * MS,
            propose_retry_ns: r.range(20, 40) * MS,
            seal_timeout_ns: r.range(30, 60) * MS,
            joiner_timeout_ns: lease_ns * 6,
            retry_after_ns: MS,
            copy_window: r.range_u32(1, 4),
            forward_backlog_blocks_max: Rng::new(seed ^ 0x00ba_c106).range(1, 24),
            inflight_records_max: [4, 8, 64][Rng::new(seed ^ 0x0000_10ad).index(3)],
            chunk_attempts_max: 3,
            forget_grace_ns: r.range(50, 300) * MS,
            mutant,
            boot_grace_ns: lease_ns,
            ..Settings::default()
        };
        let client = ClientSettings {
            unanswered_ns: r.range(20, 150) * MS,
            pull_every_ns: r.range(20, 100) * MS,
            backoff_min_ns: MS / 2,
            backoff_max_ns: r.range(2, 20) * MS,
            piece_blocks_max: r.range_u32(1, 8),
            window: r.range_u32(1, 4),
            ..ClientSettings::default()
        };
        let mut faults = Faults::default();
        let Faults {
            kill,
            power_cut,
            pause,
            reset,
            stall,
            partition,
            client_partition,
            client_crash,
            outage,
            lag,
            suspicion,
            migration,
            abort,
            transfer,
            io_error,
            rot,
            slow_disk,
            usurp,
            entry_rot,
            lost_write,
            torn_write,
            misdirected,
            read_error,
            no_space,
            hung_disk,
            lease_end,
            blackout,
        } = &mut faults;
        for (weight, typical) in [
            (kill, 10),
            (power_cut, 10),
            (pause, 6),
            (reset, 6),
            (stall, 10),
            (partition, 8),
            (client_partition, 4),
            (client_crash, 2),
            (outage, 3),
            (lag, 6),
            (suspicion, 8),
            (migration, 20),
            (abort, 2),
            (transfer, 5),
            (io_error, 1),
            (rot, 4),
            (slow_disk, 3),
            (usurp, 5),
        ] {
            if r.below(100) < 62 {
                *weight = typical * r.range_u32(1, 4);
            }
        }
        // Generators of their own, so that the rest of the plan is as it was.
        let mut rare = Rng::new(seed ^ 0x00dd_fa17);
        for (weight, typical) in [
            (entry_rot, 3),
            (lost_write, 4),
            (torn_write, 3),
            (misdirected, 3),
            (read_error, 3),
            (no_space, 2),
            (hung_disk, 2),
            (lease_end, 4),
            (blackout, 1),
        ] {
            if rare.coin() {
                *weight = typical * rare.range_u32(1, 3);
            }
        }
        let access = match Rng::new(seed ^ 0x00a7_7ac4).below(6) {
            0 | 1 => Access::Exclusive,
            2 => Access::Shared,
            _ => Access::Open,
        };
        match access {
            Access::Exclusive => faults.client_crash = faults.client_crash.max(3) * 8,
            Access::Shared => faults.client_crash = faults.client_crash.max(3) * 3,
            Access::Open => {}
        }
        let mut rarely = || if rare.coin() { rare.range_u32(20_000, 300_000) } else { 0 };
        let torn_ppm = rarely();
        let crash_before_active_ppm = rarely();
        let kill_joiner_ppm = rarely();
        let blackout_ppm = rarely() / 8;
        let stale_map_ppm = rarely() * 2;
        let reset_at_fix_ppm = rarely() * 2;
        let targeted = |r: &mut Rng| {
            if r.coin() { r.range_u32(100_000, 700_000) } else { 0 }
        };
        Plan {
            seed,
            servers: usize::try_from(servers).expect("a handful"),
            clients: usize::try_from(r.range(2, 3)).expect("a handful"),
            access,
            segments: r.range_u32(2, 3),
            replicas,
            geometry: Geometry { segment_blocks: 16, chunk_blocks: 4, region_blocks: 8 },
            settings,
            client,
            fault_every_ns: r.range(8, 40) * MS,
            latency_ns,
            disk_ns: r.range(30, 200) * US,
            commit_ns: r.range(200, 3_000) * US,
            push_ns: r.range(100, 3_000) * US,
            tick_ns: r.range(5, 10) * MS,
            drift_ppm: if r.below(4) == 0 { 50_000 } else { r.range_u32(0, 50_000) },
            residue_ns: if r.coin() { r.range(1, 100) * MS } else { 0 },
            lost_proposal_ppm: if r.coin() { r.range_u32(0, 300_000) } else { 0 },
            cut_at_promote_ppm: targeted(r),
            crash_after_promote_ppm: targeted(r),
            torn_ppm,
            crash_before_active_ppm,
            kill_joiner_ppm,
            blackout_ppm,
            stale_map_ppm,
            reset_at_fix_ppm,
            inflight_max: usize::try_from(r.range(1, 6)).expect("a handful"),
            think_ns: r.range(300, 6_000) * US,
            run_blocks: r.range(3, 6),
            hot_blocks: r.range(6, 24),
            writes_of_16: r.range(5, 12),
            faults,
        }
    }
}
