//! Own disk: a primary whose own disk hangs asks that somebody else leads.
//!
//! Invariant: it only asks (S3, S9). Nothing is given up, answered or taken back here; whoever leads
//! next has everything that was acknowledged.

use super::*;

impl<P: Payload> Replica<P> {
    /// Our own disk hangs. Nobody else can know, for we answer; so we ask that a member leads whose
    /// stream is whole (S3, S9). Members that hang too were given up before, after half as long. Alone
    /// we wait: there is no other copy.
    pub(super) fn tick_own_disk(&mut self, cx: &mut Context<P>) {
        let (segment, expect) = (self.segment, self.epoch());
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let limit_ns = cx.settings.own_disk_timeout_ns;
        let hangs = primary.disk_owes_since().is_some_and(|at| cx.now.since(at) >= limit_ns);
        let follows = |s: &ServerId| !primary.broken.contains(s) && cx.links.up.contains_key(s);
        let others = self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me);
        let successor = others.filter(follows).min();
        let Some(server) = successor.filter(|_| hangs) else {
            return;
        };
        if !primary.hangs {
            primary.hangs = true;
            cx.report(Report::DiskHangs { segment });
        }
        self.propose(cx, "new-primary", Command::NewPrimary { segment, expect, server });
    }
}
