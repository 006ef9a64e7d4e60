//! Leaving: a replica whose disk failed, whose segment is whole elsewhere, or was deleted (M11).
//!
//! Invariant: a faulted replica does nothing but say so, until the map has done without it. A file
//! goes only when nothing can want it any more, and nothing is asked of it from then on.

use super::*;
use crate::map::Joining;

impl<P: Payload> Replica<P> {
    /// This replica's disk failed. It stops at once, and says so.
    pub(super) fn fault(&mut self, cx: &mut Context<P>, error: String) {
        if matches!(self.phase, Phase::Faulted) {
            return;
        }
        self.rescue = self.promote_of_whole_joiner();
        self.say_why_it_ends(cx, &error);
        self.leave(cx);
        self.phase = Phase::Faulted;
        cx.report(Report::ReplicaFaulted { segment: self.segment, error });
        self.hand_off(cx);
    }

    /// Faulted: another member is to lead, if this server does. A lone primary has nobody but a
    /// joiner: one that has everything is promoted, and would then lead; one that has not is given
    /// up, so that clients hear what is lost.
    pub(super) fn hand_off(&mut self, cx: &mut Context<P>) {
        if self.config.primary != cx.me {
            return;
        }
        let (segment, expect) = (self.segment, self.epoch());
        let others = self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me);
        if let Some(server) = others.min_by_key(|s| (!cx.links.up.contains_key(s), *s)) {
            self.propose(cx, "new-primary", Command::NewPrimary { segment, expect, server });
        } else if let Some(command) = self.rescue.clone() {
            self.propose(cx, "promote", command);
        } else if let Some(Joining { migration, .. }) = self.config.joining {
            let reason = format!("the disk of server {}, which had the only copy, failed", cx.me);
            let (failed, at_unix_ms) = (true, 0);
            let command =
                Command::AbortMigration { segment, expect, migration, failed, reason, at_unix_ms };
            self.propose(cx, "abort", command);
        }
    }

    /// Whether this server's failed disk had the only copy there is, for all it knows.
    pub(super) fn is_lost(&self, me: ServerId) -> bool {
        let alone = self.config.primary == me && self.config.members.len() == 1;
        matches!(self.phase, Phase::Faulted) && alone && self.config.joining.is_none()
    }

    /// The segment was deleted from the map.
    pub fn delete(&mut self, cx: &mut Context<P>) {
        if let Phase::Primary(primary) = std::mem::replace(&mut self.phase, Phase::Idle) {
            primary.send_clients_away(cx, &self.config);
        }
        // Whoever was to be filled is not any more.
        self.config.joining = None;
        self.remove_file(cx);
    }

    /// From here on there is no file: nothing more is asked of it, and a joiner begins only once
    /// it is gone.
    pub(super) fn remove_file(&mut self, cx: &mut Context<P>) {
        self.created = false;
        self.store(cx, StoreRequest::Delete, Pending::Delete);
    }

    pub(super) fn is_deleting(&self) -> bool {
        self.pending.values().any(|p| matches!(p, Pending::Delete))
    }

    /// The file is gone. The replica goes with it, unless a primary is waiting to fill it anew.
    pub(super) fn on_deleted(&mut self, cx: &mut Context<P>) {
        self.durable_epoch = Epoch(0);
        self.joining = None;
        self.in_doubt.clear();
        self.tail.clear();
        self.unwanted_since = None;
        let wanted = self.config.joining.is_some_and(|j| j.target == cx.me);
        if wanted {
            self.join_if_waiting(cx);
        } else {
            self.gone = true;
        }
    }

    /// A faulted replica takes no part, but it must know the epoch to be replaced at, and that it
    /// has been: then its file goes, and the server may be a joiner again.
    pub(super) fn learn_faulted(&mut self, cx: &mut Context<P>, config: &SegmentConfig) {
        let is_newer = config.epoch > self.config.epoch;
        if is_newer {
            self.proposed.clear();
            self.rescue = self.rescue.take().and_then(|command| still_due(command, config));
        }
        self.config = config.clone();
        // Within an epoch a Promote of us may still win (M8); a newer one that has us neither as
        // member nor as joiner has refused it.
        let may_join = !is_newer || config.joining.is_some_and(|j| j.target == cx.me);
        if config.is_member(cx.me) {
            self.hand_off(cx);
        } else if !may_join && self.joining.is_some() {
            self.go_from_faulted(cx);
        } else if !may_join {
            // A member's file may be the last that an operator could fall back on. It stays until
            // the segment is whole without it, or a joiner's is to take its place.
            self.is_expelled = true;
        } else if self.is_expelled && config.joining.is_some_and(|j| j.target == cx.me) {
            self.go_from_faulted(cx);
        }
    }

    /// A faulted replica that the map has done without gives its place up.
    fn go_from_faulted(&mut self, cx: &mut Context<P>) {
        if !self.is_deleting() {
            self.is_expelled = false;
            self.phase = Phase::Idle;
            self.remove_file(cx);
        }
    }

    pub(super) fn tick_faulted(&mut self, cx: &mut Context<P>) {
        if self.is_expelled && self.is_unwanted(cx) {
            self.go_from_faulted(cx);
        } else {
            self.hand_off(cx);
        }
    }

    /// M11: data of an ex-member goes once the segment is whole elsewhere, and a while later.
    pub(super) fn tick_unwanted(&mut self, cx: &mut Context<P>) {
        if self.is_unwanted(cx) && self.is_durable() {
            self.remove_file(cx);
        }
    }

    /// Whether the segment has been whole elsewhere for a while. Whole means that every member
    /// lives, too: ours may be the copy that an operator has to fall back on (S11).
    fn is_unwanted(&mut self, cx: &mut Context<P>) -> bool {
        let config = &self.config;
        let lives = |server: ServerId| {
            let heard = cx.links.heard.get(&server);
            heard.is_some_and(|&at| cx.now.since(at) < cx.settings.suspect_ns)
        };
        let wanted = config.is_member(cx.me)
            || config.joining.is_some_and(|j| j.target == cx.me)
            || config.active < config.epoch
            || config.members.len() < usize::from(config.replicas)
            || !config.members.iter().all(|m| lives(m.server));
        if wanted || !self.created || !self.pending.is_empty() {
            self.unwanted_since = None;
            return false;
        }
        let since = *self.unwanted_since.get_or_insert(cx.now);
        cx.now.since(since) >= cx.settings.forget_grace_ns
    }
}

/// The Promote at a newer epoch, if that still has the same joiner beside a lone primary: the failed
/// disk has taken nothing since, so the joiner still has everything.
fn still_due(command: Command, config: &SegmentConfig) -> Option<Command> {
    let Command::Promote { segment, migration, digest, seq, progress, at_unix_ms, .. } = command
    else {
        return None;
    };
    let same = config.joining.is_some_and(|j| j.migration == migration);
    let expect = config.epoch;
    (same && config.members.len() == 1).then_some(Command::Promote {
        segment,
        expect,
        migration,
        digest,
        seq,
        progress,
        at_unix_ms,
    })
}
