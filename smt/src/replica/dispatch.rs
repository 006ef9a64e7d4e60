//! Dispatch: which rule a peer's message, or the store's answer, is for.
//!
//! Invariant: nothing of an older epoch, of another primary than the adopted one, or of a peer's
//! earlier life gets past here (E2).

use super::*;

impl<P: Payload> Replica<P> {
    /// A request of a peer, on its link to us.
    pub fn request(&mut self, cx: &mut Context<P>, caller: Caller, message: PeerMessage<P>) {
        let PeerMessage { segment: _, epoch, body } = message;
        if let PeerBody::Adopt { config, .. }
        | PeerBody::Continue { config }
        | PeerBody::JoinBegin { config, .. } = &body
        {
            self.learn(cx, config, false);
        }
        if matches!(self.phase, Phase::Faulted) {
            let answer = match body {
                // It would be asked again and again: only a newer epoch has it drop what it holds.
                PeerBody::JoinBegin { session, .. } => {
                    let reason = "its disk failed the replica that was there before".to_string();
                    PeerBody::JoinRefused { session, reason }
                }
                _ => PeerBody::Faulted,
            };
            self.respond(cx, caller, answer);
            return;
        }
        if !cx.holds(Mutant::E2NoEpochCheck)
            && epoch != self.epoch()
            && let PeerBody::Replicate { record, .. } = body
        {
            self.take_any_record(cx, caller, epoch, record);
            return;
        }
        if epoch < self.epoch() {
            let config = self.config.clone();
            self.respond(cx, caller, PeerBody::Stale { config });
            return;
        }
        if epoch > self.epoch() {
            // Its config is on the way by the map; whoever sent this will send it again.
            return;
        }
        if caller.peer != self.config.primary
            || self.config.primary_incarnation() != Some(caller.incarnation)
        {
            return;
        }
        match body {
            PeerBody::Adopt { round, config: _ } => self.on_adopt(cx, caller, round),
            PeerBody::Continue { config: _ } => {}
            PeerBody::Collect { round, ranges } => self.on_collect(cx, caller, round, ranges),
            PeerBody::Fetch { id, range, raw } => self.on_fetch(cx, caller, id, range, raw),
            PeerBody::Fix { id, range, change } => self.on_fix(cx, caller, id, range, change),
            PeerBody::Start { round, next_seq } => self.on_start(cx, caller, round, next_seq),
            PeerBody::Replicate { commit, record } => self.on_record(cx, caller, commit, record),
            PeerBody::SumsOf { id, range } => self.on_sums_of(cx, caller, id, range),
            PeerBody::LeaseRelease { commit, sealed_ns } => {
                self.on_release(cx, commit, sealed_ns);
            }
            PeerBody::JoinBegin { session, migration, config: _ } => {
                self.on_join(cx, caller, session, migration);
            }
            PeerBody::Copy { session, place, range, data, sums } => {
                self.on_copy(cx, caller, session, place, range, data, sums);
            }
            PeerBody::Forward { session, place, record } => {
                self.on_forward(cx, caller, session, place, record);
            }
            PeerBody::Verify { session, place, chunk, digest } => {
                self.on_verify(cx, caller, session, place, chunk, digest);
            }
            PeerBody::VerifyRoot { session, place, root } => {
                self.on_verify_root(cx, caller, session, place, root);
            }
            PeerBody::SyncStart { session, place, next_seq, commit } => {
                self.on_sync_start(cx, caller, session, place, next_seq, commit);
            }
            // Answers do not come as requests.
            PeerBody::AdoptAck { .. }
            | PeerBody::Collected { .. }
            | PeerBody::Fetched { .. }
            | PeerBody::FixAck { .. }
            | PeerBody::StartAck { .. }
            | PeerBody::ReplicateAck { .. }
            | PeerBody::JoinAck { .. }
            | PeerBody::PlaceAck { .. }
            | PeerBody::VerifyAck { .. }
            | PeerBody::SyncStartAck { .. }
            | PeerBody::Rotten { .. }
            | PeerBody::Summed { .. }
            | PeerBody::Stale { .. }
            | PeerBody::Faulted
            | PeerBody::JoinRefused { .. } => {}
        }
    }

    /// An answer of a peer, on our link to it.
    pub fn answer(&mut self, cx: &mut Context<P>, peer: ServerId, message: PeerMessage<P>) {
        let PeerMessage { segment: _, epoch, body } = message;
        if let PeerBody::Stale { config } = &body {
            self.learn(cx, config, false);
            return;
        }
        if epoch != self.epoch() {
            // An ack of an older epoch says nothing about this one: the records went out again.
            return;
        }
        match body {
            PeerBody::AdoptAck { round, max_seq, tail, in_doubt } => {
                self.on_adopt_ack(cx, peer, round, max_seq, &tail, &in_doubt);
            }
            PeerBody::Collected { round, checks } => self.on_collected(cx, peer, round, checks),
            PeerBody::Fetched { id, content } => self.on_fetched(cx, peer, id, content),
            PeerBody::FixAck { id, ok } => self.on_fix_ack(cx, peer, id, ok),
            PeerBody::StartAck { round } => self.on_start_ack(cx, peer, round),
            PeerBody::ReplicateAck { seq } => self.on_record_ack(cx, peer, seq),
            PeerBody::Rotten { ranges } => self.on_rotten(cx, peer, ranges),
            PeerBody::Summed { id, sums } => self.on_summed(cx, peer, id, sums),
            PeerBody::JoinAck { session, digests } => {
                self.on_join_ack(cx, peer, session, digests);
            }
            PeerBody::PlaceAck { session, place } => self.on_place_ack(cx, peer, session, place),
            PeerBody::VerifyAck { session, place, matched } => {
                self.on_verify_ack(cx, peer, session, place, matched);
            }
            PeerBody::SyncStartAck { session } => self.on_sync_ack(cx, peer, session),
            PeerBody::Faulted => self.peer_lost(cx, peer),
            PeerBody::JoinRefused { session, reason } => {
                self.on_join_refused(cx, peer, session, &reason);
            }
            PeerBody::Stale { .. }
            | PeerBody::Adopt { .. }
            | PeerBody::Continue { .. }
            | PeerBody::Collect { .. }
            | PeerBody::Fetch { .. }
            | PeerBody::Fix { .. }
            | PeerBody::Start { .. }
            | PeerBody::Replicate { .. }
            | PeerBody::SumsOf { .. }
            | PeerBody::LeaseRelease { .. }
            | PeerBody::JoinBegin { .. }
            | PeerBody::Copy { .. }
            | PeerBody::Forward { .. }
            | PeerBody::Verify { .. }
            | PeerBody::VerifyRoot { .. }
            | PeerBody::SyncStart { .. } => {}
        }
    }

    pub fn store_done(&mut self, cx: &mut Context<P>, io: IoId, result: StoreResult<P>) {
        let Some(pending) = self.pending.remove(&io) else {
            return;
        };
        if pending.is_write() {
            self.writes_pending -= 1;
        }
        if let StoreResult::Failed { error } = result {
            match pending {
                Pending::Delete => self.gone = true,
                _ => self.fault(cx, error),
            }
            return;
        }
        match pending {
            Pending::Create => self.on_created(cx, result),
            Pending::Meta(epoch) => self.on_meta_durable(cx, epoch),
            Pending::JoinMark(epoch) => {
                self.on_meta_durable(cx, epoch);
                self.read_old_table(cx);
            }
            Pending::SyncFlush(session) => self.on_sync_flushed(cx, session),
            Pending::JoinSums => {
                if let StoreResult::Sums { sums } = result {
                    self.joiner_ready(cx, sums);
                }
            }
            Pending::Delete => self.on_deleted(cx),
            Pending::OwnRecord(seq) => self.on_own_record(cx, seq),
            Pending::BackupRecord { stream, seq, range } => {
                self.on_backup_record(cx, stream, seq);
                self.written_over(cx, range);
            }
            Pending::ClientRead(id) => self.on_client_read(cx, id, result),
            Pending::RepairSums(id) => {
                if let StoreResult::Sums { sums } = result {
                    self.on_repair_sums(cx, id, sums);
                }
            }
            Pending::Repair(id) => self.on_repaired(cx, id),
            Pending::MendSums(id) => {
                if let StoreResult::Sums { sums } = result {
                    let me = cx.me;
                    self.on_summed(cx, me, id, sums);
                }
            }
            Pending::MendRead(id) => self.on_mend_read(cx, id, result),
            Pending::MendUnordered(peer, range) => {
                self.on_mend_unordered(cx, peer, range, result);
            }
            Pending::Suspicion(suspicion) => self.on_suspects_checked(cx, suspicion, result),
            Pending::SumsOf { caller, id } => {
                if let StoreResult::Sums { sums } = result {
                    self.respond(cx, caller, PeerBody::Summed { id, sums });
                }
            }
            Pending::ChunkRead { session, chunk } => {
                self.on_chunk_read(cx, session, chunk, result);
            }
            Pending::Fetch { caller, id, range, raw } => {
                self.on_fetch_read(cx, caller, id, range, raw, result);
            }
            Pending::OwnCheck { round } => {
                if let StoreResult::Checks { checks } = result {
                    let me = cx.me;
                    self.on_collected(cx, me, round, checks);
                }
            }
            Pending::Collect { caller, round } => {
                if let StoreResult::Checks { checks } = result {
                    self.respond(cx, caller, PeerBody::Collected { round, checks });
                }
            }
            Pending::OwnFetch { round, item } => self.on_own_fetch(cx, round, item, result),
            Pending::OwnFix { round, item } => {
                let me = cx.me;
                self.on_fixed(cx, me, round, item);
            }
            Pending::Fix { caller, id, range } => {
                self.respond(cx, caller, PeerBody::FixAck { id, ok: true });
                self.written_over(cx, range);
            }
            Pending::Place { session, place } => self.on_placed(cx, session, place),
            Pending::VerifyChunk { session, place, digest } => {
                self.on_chunk_checked(cx, session, place, digest, result);
            }
        }
        if self.writes_pending == 0 {
            self.writes_finished(cx);
        }
    }

    fn on_created(&mut self, cx: &mut Context<P>, result: StoreResult<P>) {
        if self.is_deleting() {
            // The segment went while its file was made.
            return;
        }
        if let StoreResult::NoSpace = result {
            if let Phase::Joiner(_) = self.phase {
                self.joiner_refuses(cx, "no space left on the target");
            } else {
                self.fault(cx, "no space left for a new replica".to_string());
            }
            return;
        }
        self.created = true;
        if let Phase::Joiner(_) = self.phase {
            // The mark is durable; the epoch may have moved on while the file was made.
            self.set_meta(cx);
            self.joiner_ready(cx, Vec::new());
            return;
        }
        // The config may have moved on while the file was made.
        self.set_meta(cx);
        self.enter_if_mine(cx);
    }

    /// The adopted config is durable: what waited for it goes on.
    fn on_meta_durable(&mut self, cx: &mut Context<P>, epoch: Epoch) {
        self.durable_epoch = self.durable_epoch.max(epoch);
        match &self.phase {
            Phase::Primary(_) => self.settle(cx),
            Phase::Activating(_) => self.advance_activation(cx),
            Phase::Backup(_) => self.backup_durable(cx),
            Phase::Idle | Phase::Joiner(_) | Phase::Faulted => {}
        }
    }

    /// Nothing of ours is being written any more: an activation may be waiting for that.
    fn writes_finished(&mut self, cx: &mut Context<P>) {
        match &self.phase {
            Phase::Activating(_) => self.advance_activation(cx),
            Phase::Backup(_) => self.answer_adopt(cx),
            Phase::Joiner(_) => self.prepare_file(cx),
            Phase::Idle | Phase::Primary(_) | Phase::Faulted => {}
        }
    }
}
