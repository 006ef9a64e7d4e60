//! Leases: promises not to take part in another primary's activation, given and used (L1–L5).
//!
//! Invariant: a promise binds its giver for its full length from when it was asked for, and serves
//! its holder for less than that from when it asked (L2); so no clock within 15 % can make a
//! primary read after another one became active.

use super::*;

impl<P: Payload> Replica<P> {
    /// The segments and epochs we want `peer`'s promise for, as primary.
    pub fn wants_lease(&self, peer: ServerId) -> Option<(SegmentId, Epoch)> {
        let Phase::Primary(primary) = &self.phase else {
            return None;
        };
        let asks = primary.asks_lease_of(peer) || self.config.is_member(peer);
        (asks && !primary.is_released()).then_some((self.segment, self.epoch()))
    }

    /// L1, L2: promise the primary of the adopted epoch, or refuse.
    pub fn grant(&mut self, cx: &Context<P>, from: Caller, epoch: Epoch) -> bool {
        let theirs = self.config.primary == from.peer
            && self.config.primary_incarnation() == Some(from.incarnation);
        let role = match &self.phase {
            Phase::Backup(_) => true,
            Phase::Joiner(joiner) => joiner.is_synced(),
            Phase::Idle | Phase::Activating(_) | Phase::Primary(_) | Phase::Faulted => false,
        };
        if epoch != self.epoch() || !theirs || !role || self.released >= epoch {
            return false;
        }
        let until = cx.now.after(cx.settings.lease_ns);
        self.promise = Some(Promise { to: from.peer, until });
        true
    }

    /// E2: who asks at an older epoch is told the newer one. A primary that the map does not reach
    /// may have nothing else to hear it by, while clients that know better ask it in vain.
    pub fn correct(&self, cx: &mut Context<P>, to: Caller, epoch: Epoch) {
        if epoch < self.epoch() && !matches!(self.phase, Phase::Faulted) {
            let config = self.config.clone();
            self.respond(cx, to, PeerBody::Stale { config });
        }
    }

    /// L1: whether every required granter's promise still holds.
    pub(super) fn has_lease(&self, cx: &Context<P>) -> bool {
        let Phase::Primary(primary) = &self.phase else {
            return false;
        };
        if primary.is_released() && cx.holds(Mutant::L5ServesOn) {
            return false;
        }
        let held = |s: ServerId| primary.leases.get(&s).is_some_and(|&until| cx.now < until);
        let members = self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me);
        let joiner = primary.copy.as_ref().filter(|c| c.was_proposed()).map(|c| c.target);
        let joiner = joiner.filter(|_| cx.holds(Mutant::L1JoinerNotGranter));
        members.chain(joiner).all(held)
    }

    /// A peer has promised, in answer to a request of ours sent at `sent`.
    pub fn granted(&mut self, cx: &Context<P>, by: ServerId, sent: Tick, epoch: Epoch) {
        let current = epoch == self.epoch();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if !current || sent < primary.leases_since || sent > cx.now {
            return;
        }
        // L2: our clock may be slower than the granter's.
        let lease_ns = cx.settings.lease_ns;
        let margin = cx.holds(Mutant::L2NoMargin);
        let from = if cx.holds(Mutant::L2FromGrant) { sent } else { cx.now };
        let until = from.after(if margin { lease_ns / 100 * 85 } else { lease_ns });
        let lease = primary.leases.entry(by).or_insert(until);
        *lease = until.max(*lease);
    }
}
