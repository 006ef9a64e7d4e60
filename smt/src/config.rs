//! Times, limits and shapes the brain works by, and the switches of the simulator's mutants.

use serde::{Deserialize, Serialize};

use crate::ids::BLOCK_BYTES;

/// How a segment is cut. Small in the simulator, so that collisions are common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Blocks of a segment.
    pub segment_blocks: u32,
    /// Blocks of a chunk, the unit of copying and of verification.
    pub chunk_blocks: u32,
    /// Blocks of a region, the unit of the intent map.
    pub region_blocks: u32,
}

impl Geometry {
    /// Petrel's own: 256 KiB chunks and 1 MiB regions in a segment of `segment_bytes`
    /// (a power of two from 1 MiB to 1 GiB).
    #[must_use]
    pub fn of_segment(segment_bytes: u64) -> Option<Geometry> {
        if !segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment_bytes) {
            return None;
        }
        let segment_blocks = u32::try_from(segment_bytes / BLOCK_BYTES).ok()?;
        Some(Geometry { segment_blocks, chunk_blocks: 64, region_blocks: 256 })
    }

    /// Whether it can be worked with: nothing in it is zero, nor larger than a 1 GiB segment.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let limit = 1 << 18;
        [self.segment_blocks, self.chunk_blocks, self.region_blocks]
            .iter()
            .all(|blocks| (1..=limit).contains(blocks))
            && self.chunk_blocks <= 256
    }

    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.segment_blocks.div_ceil(self.chunk_blocks)
    }

    #[must_use]
    pub fn regions(&self) -> u32 {
        self.segment_blocks.div_ceil(self.region_blocks)
    }
}

/// Milliseconds in the nanoseconds of a [`crate::Tick`].
pub const MS: u64 = 1_000_000;

/// Times and limits of the replication protocol. All times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a lease promise binds the one who gave it (L2).
    pub lease_ns: u64,
    /// How often a primary renews its leases (L2).
    pub lease_renew_ns: u64,
    /// How long a required acker may stay silent before it is evicted (W5).
    pub ack_timeout_ns: u64,
    /// How long a primary waits for its own disk before it asks another member to lead (W5).
    pub own_disk_timeout_ns: u64,
    /// How long a backup waits for a word of its primary before it offers itself (S9).
    pub suspect_ns: u64,
    /// The same, once the primary's connection has closed: a dead process, not a slow one.
    pub suspect_closed_ns: u64,
    /// How long an unanswered proposal rests before it is made again.
    pub propose_retry_ns: u64,
    /// How long a seal may last before the migration is given up (M10).
    pub seal_timeout_ns: u64,
    /// How long a joiner may stay away before its migration is given up (section 8).
    pub joiner_timeout_ns: u64,
    /// How long a client is told to wait when it is told to retry.
    pub retry_after_ns: u64,
    /// How long an activation waits for a member it has had no connection with since it started:
    /// after a power cut servers come back one by one.
    pub boot_grace_ns: u64,
    /// Bytes a second a copy may take while clients are busy here (M5).
    pub copy_bytes_per_second_busy: u64,
    /// Chunks in flight to a joiner at once.
    pub copy_window: u32,
    /// Forwarded, unacknowledged blocks a joiner may owe before writes take chunks back (M4).
    pub forward_backlog_blocks_max: u64,
    /// Requests of clients that a replica takes on, reads included, and records it keeps in its
    /// tail for them, at most; a client beyond is told to retry (I11). Two more may be there to
    /// mend (R3).
    pub inflight_records_max: usize,
    /// How often a failing chunk is copied again before the migration is given up (M6).
    pub chunk_attempts_max: u32,
    /// How long an ex-member keeps its data once the segment is whole elsewhere (M11).
    pub forget_grace_ns: u64,
    /// The rule the simulator has switched off, if any.
    pub mutant: Option<Mutant>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            // Failover after the death of a primary waits this out: 0.7 s leave 0.3 of the second
            // it may take. Five renewals in it, so that a hiccup of half a second goes unnoticed.
            lease_ns: 700 * MS,
            lease_renew_ns: 140 * MS,
            ack_timeout_ns: 1500 * MS,
            // Twice that of others: where all disks hang, members leave first, and the last one waits.
            own_disk_timeout_ns: 3000 * MS,
            suspect_ns: 1500 * MS,
            suspect_closed_ns: 200 * MS,
            propose_retry_ns: 1000 * MS,
            seal_timeout_ns: 500 * MS,
            joiner_timeout_ns: 60_000 * MS,
            retry_after_ns: 2 * MS,
            boot_grace_ns: 10_000 * MS,
            copy_bytes_per_second_busy: 128 << 20,
            copy_window: 4,
            // 16 MiB: what a joiner still has to write when it becomes a required acker.
            forward_backlog_blocks_max: 4096,
            inflight_records_max: 4096,
            chunk_attempts_max: 3,
            forget_grace_ns: 10_000 * MS,
            mutant: None,
        }
    }
}

impl Settings {
    /// Whether the rule that `mutant` deletes is in force. Always, in a daemon.
    #[must_use]
    pub fn holds(&self, mutant: Mutant) -> bool {
        if cfg!(feature = "mutants") { self.mutant != Some(mutant) } else { true }
    }
}

/// A rule of PROTOCOL.md that the simulator can switch off, to prove that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// W4: answer the client once the primary alone has the write.
    W4AckBeforeAll,
    /// W4/9: acknowledge a write before it is durable.
    W4AckBeforeDurable,
    /// W5: stop waiting for a silent backup before its eviction is committed.
    W5DropBeforeEvicted,
    /// E2: a backup takes records of any epoch.
    E2NoEpochCheck,
    /// E3: what still comes by an older connection of a peer is heard.
    E3OldLinkHeard,
    /// W3: a stream goes on from an older one's number, where that is higher than its own start.
    W3StreamNotReset,
    /// W6: overlapping records are in flight at once, and replicas apply them in any order.
    W6Unordered,
    /// S1: the map takes a change whatever epoch it was planned at.
    S1NoCompareAndSet,
    /// S3: a joiner, or an ex-member, may be made primary.
    S3JoinerElectable,
    /// S2: the primary can be evicted.
    S2PrimaryEvicted,
    /// S7: a new life of a server begins within the epoch.
    S7SameEpoch,
    /// S8: a new attachment has the token of the one before.
    S8TokenAgain,
    /// R2: reads are served without a lease.
    R2NoLease,
    /// R1: reads do not wait for overlapping uncommitted writes.
    R1ReadUncommitted,
    /// R3: what is read is given out, and copied, without being checked.
    R3ServeUnverified,
    /// R3: a bad block is replaced by whatever another member holds, checked or not.
    R3FromUnverified,
    /// R3: a member's rotten blocks are written over outside of the stream.
    R3RepairUnordered,
    /// R3: members are compared while writes are in flight.
    R3CompareInFlight,
    /// R3: where members differ, the primary's copy is taken, whatever the others hold.
    R3OwnCopyWins,
    /// L4: a restarted server forgets that it may have promised.
    L4ForgetPromise,
    /// M1: all sessions of one migration have one id.
    M1SessionReused,
    /// M2: an old copy is taken for equal whatever its digest; it is read back.
    M2DigestNotCompared,
    /// M2: an old copy of equal digest counts whatever reading it back says.
    M2NotReadBack,
    /// M6: a copied chunk counts whatever reading it back says.
    M6NotReadBack,
    /// M12: a second migration of a segment takes the first one's place.
    M12SecondMigration,
    /// M3: a chunk is read earlier than its place in the stream.
    M3ReadEarly,
    /// M4: a write that is not forwarded, for the joiner owes too much, does not take its chunk back.
    M4WriteForgotten,
    /// M7: a joiner is promoted without having become a required acker.
    M7PromoteWithoutSync,
    /// M8: a joiner is dropped after Promote was proposed, without winning a compare-and-set.
    M8DropAfterPropose,
    /// M9: Promote is proposed before the writes from before SyncStart are committed.
    M9PromoteEarly,
    /// F1: a silent member is left out of an activation, instead of evicted.
    F1SilentLeftOut,
    /// F1: an activation does not wait for writes still under way.
    F1WritesUnfinished,
    /// F2: activation reconciles nothing.
    F2NoReconcile,
    /// F3: activation goes on from the primary's own last sequence number.
    F3OwnSequence,
    /// F4: a restarted primary goes on in its old epoch.
    F4ContinueEpoch,
    /// C1: a primary takes a request of any epoch.
    C1NoEpochCheck,
    /// C5: a request whose answer is overdue is reported failed.
    C5GivesUp,
    /// C3: a server takes requests of a client's older connection.
    C3NoSessionCheck,
    /// C4: a client sends overlapping writes at once.
    C4NoOverlapLock,
    /// L1: a joiner whose Promote was proposed is not asked for its lease.
    L1JoinerNotGranter,
    /// L2: a promise serves its holder for all of its length.
    L2NoMargin,
    /// L2: the holder of a promise counts from when it got it.
    L2FromGrant,
    /// L5: a primary that has given its promises back goes on serving.
    L5ServesOn,
    /// L3: nobody's promise delays an activation.
    L3NoPromiseWait,
    /// 9: the first data write into a region does not wait for its intent bit.
    D9IntentNotFirst,
    /// 9: a write over a zeroed block does not make the block's table entry durable.
    D9ZeroEntryNotSynced,
    /// 9: an intent bit is cleared before the table of its region is durable.
    D9IntentClearedEarly,
    /// 9: an intent bit is cleared though the cluster has not decided what its blocks hold.
    D9UnsettledCleared,
    /// 9: a Flush is answered before the table is durable.
    D9FlushWithoutTable,
    /// E1: an adopted epoch is not made durable before it is acted on.
    E1AdoptNotDurable,
    /// A1: an attachment is complete without a fence.
    A1NoFence,
    /// A1: a fence is acknowledged by whoever gets it, not by an active primary alone.
    A1FenceAnybody,
    /// A1: a client opens the volume by a map older than its attachment. (Its hands' rule.)
    A1OldMap,
    /// A2: a new primary does not know the writer token of its config.
    A2TokenNotInConfig,
    /// A3: a request is taken whatever its writer token.
    A3NoTokenCheck,
}
