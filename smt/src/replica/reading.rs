//! Reading at the primary (R1–R3), and the repair of what does not match its checksum.
//!
//! Invariant: a reply carries data that matched its checksums and was read before the lease was
//! looked at (R2). A block that does not match is replaced by a member's that does, or the read
//! fails; it is never served (R3).

use super::primary::{Asker, reply};
use super::*;

/// A client's read under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadState {
    pub asker: Asker,
    range: BlockRange,
    /// Runs of bad blocks that were repaired for it so far.
    rounds: u32,
    /// Since when our disk owes an answer; none while other members are asked for good blocks.
    pub asked: Option<Tick>,
}

/// What a repair was for.
#[derive(Clone, Copy, Debug)]
pub(super) enum After {
    Read(u64),
    /// What was repaired for this read is bad again at once. Nothing is written any more: a member
    /// that has what our table wants answers it.
    Instead(u64),
    /// The chunk goes back to the list; the next attempt will read it whole.
    Chunk(CopySession, u32),
    /// Somebody had looked, and nothing waits for it.
    Suspicion,
    /// The mend of this number reads its blocks again.
    Mend(u64),
}

/// A run of blocks being replaced by another member's. Writes to it wait.
#[derive(Clone, Debug)]
pub(super) struct Repair<P> {
    pub range: BlockRange,
    after: After,
    /// What our table says of the blocks.
    ours: Vec<u64>,
    /// Members still to be asked.
    left: Vec<ServerId>,
    asked: Option<(ServerId, Tick)>,
    /// Somebody did not answer, and may have a good copy.
    unheard: bool,
    /// Copies that verify, but are not what our table wants.
    others: Vec<(P, Sums)>,
}

impl<P: Payload> Repair<P> {
    /// Of the copies that verify, what most members hold; the first to come where that is a tie.
    fn most_agreed(&self) -> Option<(P, Sums)> {
        let votes = |sums: &Sums| self.others.iter().filter(|(_, s)| s == sums).count();
        let most = self.others.iter().map(|(_, sums)| votes(sums)).max()?;
        self.others.iter().find(|(_, sums)| votes(sums) == most).cloned()
    }
}

/// The first run of neighbours in an ordered list of blocks.
pub(super) fn first_run(blocks: &[u32]) -> Option<BlockRange> {
    let first = *blocks.first()?;
    let more = blocks.iter().zip(first..).take_while(|(b, want)| *b == want).count();
    Some(BlockRange::new(first, u32::try_from(more).ok()?))
}

impl<P: Payload> Replica<P> {
    pub(super) fn start_read(&mut self, cx: &mut Context<P>, asker: Asker, range: BlockRange) {
        let id = self.unique();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let asked = Some(cx.now);
        primary.reads.insert(id, ReadState { asker, range, rounds: 0, asked });
        self.store(cx, StoreRequest::Read { range }, Pending::ClientRead(id));
    }

    pub(super) fn on_client_read(&mut self, cx: &mut Context<P>, id: u64, result: StoreResult<P>) {
        let leased = self.has_lease(cx) || !cx.holds(Mutant::R2NoLease);
        let usable = leased && self.is_durable();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(read) = primary.reads.remove(&id) else {
            return;
        };
        let retry = ReplyBody::Retry { after_ns: cx.settings.retry_after_ns };
        let body = match result {
            StoreResult::Data { data, sums } if usable => ReplyBody::Data { data, sums },
            StoreResult::Data { .. } => retry,
            StoreResult::BadBlocks { blocks } => {
                let Some(range) = first_run(&blocks) else {
                    return;
                };
                let hopeless = read.rounds > read.range.count;
                let range = if hopeless { read.range } else { range };
                if primary.is_busy(range) || primary.is_mending(range) {
                    // A write is replacing the block as we speak.
                    reply(cx, self.segment, read.asker, retry);
                    return;
                }
                let rounds = read.rounds + 1;
                primary.reads.insert(id, ReadState { rounds, asked: None, ..read });
                let after = if hopeless { After::Instead(id) } else { After::Read(id) };
                self.start_repair(cx, range, after);
                return;
            }
            StoreResult::Done
            | StoreResult::Checks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => ReplyBody::IoError,
        };
        reply(cx, self.segment, read.asker, body);
        self.advance_migration(cx);
    }

    /// Starts to replace a run of bad blocks of ours by another member's. No write to it is in
    /// flight, and no other repair of it.
    pub(super) fn start_repair(&mut self, cx: &mut Context<P>, range: BlockRange, after: After) {
        let id = self.unique();
        let left: Vec<ServerId> =
            self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me).collect();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let repair = Repair {
            range,
            after,
            ours: Vec::new(),
            left,
            asked: None,
            unheard: false,
            others: Vec::new(),
        };
        primary.repairs.insert(id, repair);
        self.store(cx, StoreRequest::Sums { range }, Pending::RepairSums(id));
    }

    /// What our table says the blocks should be: whoever has just that is asked for first of all.
    pub(super) fn on_repair_sums(&mut self, cx: &mut Context<P>, id: u64, sums: Vec<u64>) {
        if let Phase::Primary(primary) = &mut self.phase
            && let Some(repair) = primary.repairs.get_mut(&id)
        {
            repair.ours = sums;
            self.ask_next(cx, id);
        }
    }

    /// Asks the next member for good blocks, or makes do with what there is.
    fn ask_next(&mut self, cx: &mut Context<P>, id: u64) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(repair) = primary.repairs.get_mut(&id) else {
            return;
        };
        let range = repair.range;
        if let Some(peer) = repair.left.pop() {
            repair.asked = Some((peer, cx.now));
            let raw = !cx.settings.holds(Mutant::R3FromUnverified);
            let message = self.message(PeerBody::Fetch { id, range, raw });
            cx.send(peer, message);
            return;
        }
        let instead = matches!(repair.after, After::Instead(_));
        if !repair.unheard
            && !instead
            && let Some((data, sums)) = repair.most_agreed()
        {
            let request = StoreRequest::Write { range, data, sums };
            self.store(cx, request, Pending::Repair(id));
            return;
        }
        let (after, unheard) = (repair.after, repair.unheard);
        primary.repairs.remove(&id);
        if range.count > 1 && !instead {
            // Nobody has all of it; somebody may have each. What needs it finds the others bad
            // again afterwards.
            self.start_repair(cx, BlockRange::new(range.first, 1), after);
            return;
        }
        // Nobody has all that is to be read instead; its blocks may be good on several.
        let unheard = unheard || range.count > 1;
        if !instead || !unheard {
            let blocks = range.blocks().collect();
            cx.report(Report::Mismatch { segment: self.segment, blocks, repaired: false });
        }
        match after {
            After::Read(read) | After::Instead(read) => {
                let Phase::Primary(primary) = &mut self.phase else {
                    return;
                };
                if let Some(read) = primary.reads.remove(&read) {
                    // R3: only where all copies are known to be bad is it an error.
                    let retry = ReplyBody::Retry { after_ns: cx.settings.retry_after_ns };
                    let body = if unheard { retry } else { ReplyBody::IoError };
                    reply(cx, self.segment, read.asker, body);
                }
            }
            After::Chunk(session, chunk) => self.chunk_unreadable(cx, session, chunk),
            After::Suspicion => {}
            After::Mend(mend) => self.mend_unrepaired(cx, mend, range.first),
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// A member's blocks have come, for a fix (F2), for a repair or for a mend.
    pub(super) fn on_fetched(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        id: u64,
        content: Option<(P, Sums)>,
    ) {
        let Phase::Primary(primary) = &mut self.phase else {
            self.fix_fetched(cx, peer, id, content);
            return;
        };
        let Some(repair) = primary.repairs.get_mut(&id) else {
            self.mend_fetched(cx, peer, id, content);
            return;
        };
        if repair.asked.is_none_or(|(asked, _)| asked != peer) {
            return;
        }
        repair.asked = None;
        let range = repair.range;
        let wanted = repair.ours.clone();
        match content {
            Some((data, sums))
                if data.blocks() == range.count
                    && crate::payload::verify(&data, &sums, self.segment, range.first) =>
            {
                if let After::Instead(read) = repair.after
                    && *sums == *wanted
                {
                    primary.repairs.remove(&id);
                    self.on_client_read(cx, read, StoreResult::Data { data, sums });
                    self.settle_mends(cx);
                    self.admit_held(cx);
                } else if *sums == *wanted || !cx.settings.holds(Mutant::R3FromUnverified) {
                    let request = StoreRequest::Write { range, data, sums };
                    self.store(cx, request, Pending::Repair(id));
                } else {
                    // Good there, and not what our table wants: the rot may be in our table, or
                    // the other copy be an old one. Somebody may have just what ours wants.
                    repair.others.push((data, sums));
                    self.ask_next(cx, id);
                }
            }
            Some(_) | None => self.ask_next(cx, id),
        }
    }

    /// Good blocks stand where the bad ones stood: what needed them goes on.
    pub(super) fn on_repaired(&mut self, cx: &mut Context<P>, id: u64) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(repair) = primary.repairs.remove(&id) else {
            return;
        };
        let blocks = repair.range.blocks().collect();
        cx.report(Report::Mismatch { segment: self.segment, blocks, repaired: true });
        match repair.after {
            After::Read(read) | After::Instead(read) => {
                if let Some(read_state) = primary.reads.get_mut(&read) {
                    read_state.asked = Some(cx.now);
                    let range = read_state.range;
                    self.store(cx, StoreRequest::Read { range }, Pending::ClientRead(read));
                }
            }
            After::Chunk(session, chunk) => self.chunk_again(cx, session, chunk),
            After::Suspicion => {}
            After::Mend(mend) => self.mend_repaired(cx, mend),
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// Members that do not answer a repair are passed over.
    pub(super) fn tick_repairs(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let patience = cx.settings.ack_timeout_ns;
        let late: Vec<u64> = primary
            .repairs
            .iter()
            .filter(|(_, r)| r.asked.is_some_and(|(_, at)| cx.now.since(at) >= patience))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Phase::Primary(primary) = &mut self.phase
                && let Some(repair) = primary.repairs.get_mut(&id)
            {
                repair.unheard = true;
            }
            self.ask_next(cx, id);
        }
    }
}
