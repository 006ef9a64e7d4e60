//! Cut-over: the end of a migration at its primary, for better or worse (M8–M10), and the
//! hand-over without a copy (S3b).
//!
//! Invariant: Promote is proposed only with everything rule M9 asks for, and from then on only the
//! map ends the migration (M8). A seal does not outlast its limit, unless the map is still to say
//! what became of the proposal.

use super::copying::Stage;
use super::primary::Seal;
use super::primary::reply;
use super::*;
use crate::map::MigrationState;

impl<P: Payload> Replica<P> {
    /// M9 and M10, and S3b: proposes the cut-over once everything it needs holds.
    pub(super) fn advance_migration(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        if let Some(copy) = &primary.copy {
            if copy.stage < Stage::Synced || copy.broken || primary.abort.is_some() {
                return;
            }
            let target = copy.target;
            let settled = primary.committed_to(copy.pre_sync) || !cx.holds(Mutant::M9PromoteEarly);
            let leads = self.config.joining.and_then(|j| j.replaces) == Some(cx.me);
            if leads {
                self.seal(cx);
                if !settled || !self.release_if_drained(cx) {
                    return;
                }
            } else {
                // Its promise is needed from the proposal on (L1): have it before.
                let leased = primary.leases.get(&target).is_some_and(|&t| cx.now < t);
                let wanted = cx.holds(Mutant::L1JoinerNotGranter) && !copy.never_acker;
                if !settled || (wanted && !leased) {
                    return;
                }
            }
            self.propose_promote(cx);
            return;
        }
        let Some(server) = self.config.transfer else {
            return;
        };
        if server == cx.me || !self.config.is_member(server) || primary.broken.contains(&server) {
            return;
        }
        self.seal(cx);
        if self.release_if_drained(cx) {
            let (segment, expect) = (self.segment, self.epoch());
            self.propose(cx, "transfer", Command::Transfer { segment, expect, server });
        }
    }

    fn propose_promote(&mut self, cx: &mut Context<P>) {
        if let Phase::Primary(primary) = &mut self.phase
            && let Some(copy) = primary.copy.as_deref_mut()
        {
            copy.stage = Stage::Proposed;
        }
        if let Some(command) = self.promote_command() {
            self.propose(cx, "promote", command);
        }
    }

    fn promote_command(&self) -> Option<Command> {
        let Phase::Primary(primary) = &self.phase else {
            return None;
        };
        let copy = primary.copy.as_deref()?;
        Some(Command::Promote {
            segment: self.segment,
            expect: self.epoch(),
            migration: copy.migration,
            digest: copy.root,
            seq: primary.last_seq(),
            progress: copy.progress,
            // The hands fill in the time; the brain has no calendar.
            at_unix_ms: 0,
        })
    }

    /// The Promote of a joiner that has all that was acknowledged, and needs nothing more from us:
    /// M9 without what a primary that goes on serving would need.
    pub(super) fn promote_of_whole_joiner(&self) -> Option<Command> {
        let Phase::Primary(primary) = &self.phase else {
            return None;
        };
        let copy = primary.copy.as_deref()?;
        let whole = copy.stage >= Stage::Synced
            && !copy.never_acker
            && primary.abort.is_none()
            && primary.committed_to(copy.pre_sync);
        whole.then(|| self.promote_command()).flatten()
    }

    /// The joiner's connection is gone, or it is silent. Before Promote was proposed its session
    /// is simply dropped; after, the map decides (M8).
    pub(super) fn joiner_lost(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(copy) = primary.copy.as_deref_mut() else {
            return;
        };
        let target = copy.target;
        if copy.was_proposed() && cx.settings.holds(Mutant::M8DropAfterPropose) {
            copy.broken = true;
            if primary.abort.is_none() {
                let reason = format!("server {target} was lost during the cut-over");
                primary.abort = Some((true, reason));
            }
            self.propose_abort(cx);
            return;
        }
        self.drop_session();
        self.settle(cx);
    }

    fn drop_session(&mut self) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(copy) = primary.copy.take() else {
            return;
        };
        primary.drop_need(copy.target);
        primary.leases.remove(&copy.target);
        // Not released: nothing was proposed, and no promise was given back.
        if primary.seal.is_some_and(|s| !s.released) {
            primary.seal = None;
        }
    }

    /// Ends the migration for good, with a reason for its record.
    pub(super) fn give_up(&mut self, cx: &mut Context<P>, failed: bool, reason: String) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if primary.abort.is_none() {
            primary.abort = Some((failed, reason));
        }
        if !primary.copy.as_ref().is_some_and(|c| c.was_proposed()) {
            self.drop_session();
        }
        self.propose_abort(cx);
        self.settle(cx);
    }

    fn propose_abort(&mut self, cx: &mut Context<P>) {
        let (segment, expect) = (self.segment, self.epoch());
        let Some(joining) = self.config.joining else {
            return;
        };
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        let Some((failed, reason)) = primary.abort.clone() else {
            return;
        };
        let migration = joining.migration;
        let at_unix_ms = 0;
        let command =
            Command::AbortMigration { segment, expect, migration, failed, reason, at_unix_ms };
        self.propose(cx, "abort", command);
    }

    pub(super) fn tick_migration(&mut self, cx: &mut Context<P>) {
        self.tick_seal(cx);
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if primary.abort.is_some() {
            self.propose_abort(cx);
            return;
        }
        let Some(joining) = self.config.joining else {
            self.check_wishes(cx);
            return;
        };
        if cx.now.since(primary.joiner_progress) >= cx.settings.joiner_timeout_ns {
            let reason = format!(
                "server {} came no nearer to being filled for {} s",
                joining.target,
                cx.settings.joiner_timeout_ns / (1000 * crate::config::MS)
            );
            self.give_up(cx, true, reason);
            return;
        }
        let patience = cx.settings.ack_timeout_ns;
        let Some(copy) = primary.copy.as_deref_mut() else {
            self.check_wishes(cx);
            return;
        };
        let waits =
            copy.stage == Stage::Begun || copy.stage == Stage::SyncSent || !copy.open.is_empty();
        if !waits {
            copy.heard = cx.now;
        }
        if copy.stage < Stage::Proposed && cx.now.since(copy.heard) >= patience * 2 {
            self.joiner_lost(cx);
            self.check_wishes(cx);
            return;
        }
        let migration = copy.migration;
        let (stage, progress) = (copy.stage, copy.progress);
        let state = match stage {
            Stage::Begun => None,
            Stage::Copying => Some(MigrationState::Copying),
            Stage::Root | Stage::SyncSent => Some(MigrationState::Verifying),
            Stage::Synced | Stage::Proposed => Some(MigrationState::CuttingOver),
        };
        if stage == Stage::Proposed {
            self.propose_promote(cx);
        } else {
            self.copy_more(cx);
            self.advance_migration(cx);
        }
        if let Some(state) = state {
            let command = Command::MigrationProgress { migration, state, progress };
            self.propose(cx, "progress", command);
        }
    }

    /// M10: a seal that lasts too long is given up: at once if nothing was proposed, by the map if
    /// something was.
    fn tick_seal(&mut self, cx: &mut Context<P>) {
        let (segment, expect) = (self.segment, self.epoch());
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(Seal { at, released }) = primary.seal else {
            return;
        };
        if cx.now.since(at) < cx.settings.seal_timeout_ns {
            return;
        }
        if primary.copy.is_some() || self.config.joining.is_some() {
            if primary.abort.is_none() {
                let reason = "the cut-over took too long".to_string();
                primary.abort = Some((true, reason));
            }
            if !released {
                primary.seal = None;
            }
            self.propose_abort(cx);
        } else {
            // The wish for a hand-over is taken back, with a new epoch.
            let server = cx.me;
            if !released {
                primary.seal = None;
            }
            let command = Command::RequestTransfer { segment, expect, server };
            self.propose(cx, "untransfer", command);
        }
    }

    /// Stops taking requests; those held back are told to come again.
    pub(super) fn seal(&mut self, cx: &mut Context<P>) {
        let segment = self.segment;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if primary.seal.is_some() {
            return;
        }
        primary.seal = Some(Seal { at: cx.now, released: false });
        self.end_mends(cx);
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        for held in std::mem::take(&mut primary.held) {
            let body = ReplyBody::Retry { after_ns: cx.settings.retry_after_ns };
            reply(cx, segment, held.asker, body);
        }
    }

    /// L5: once drained, gives the leases back. True when that is done.
    pub(super) fn release_if_drained(&mut self, cx: &mut Context<P>) -> bool {
        let Phase::Primary(primary) = &mut self.phase else {
            return false;
        };
        let Some(seal) = &mut primary.seal else {
            return false;
        };
        let Seal { at, released } = *seal;
        if released {
            return true;
        }
        if !primary.is_drained() {
            return false;
        }
        primary.seal = Some(Seal { at, released: true });
        if cx.settings.holds(Mutant::L5ServesOn) {
            primary.leases.clear();
            primary.leases_since = cx.now.after(1);
        }
        let commit = primary.commit();
        let joiner = primary.copy.as_ref().map(|c| c.target);
        let sealed_ns = cx.now.since(at);
        let peers = self.config.members.iter().map(|m| m.server).chain(joiner);
        for peer in peers.filter(|&s| s != cx.me).collect::<Vec<_>>() {
            let message = self.message(PeerBody::LeaseRelease { commit, sealed_ns });
            cx.send(peer, message);
        }
        true
    }
}
