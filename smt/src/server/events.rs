//! Everything that can happen to a server's brain, and everything it can ask for.

use crate::ids::*;
use crate::map::{Command, SegmentConfig};
use crate::message::*;
use crate::store::{ReplicaMeta, StoreRequest, StoreResult};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// Time passed. Wanted every 10 to 50 ms.
    Tick,
    /// Our link to `peer` is up. Links to every other server of the map are kept by the hands,
    /// redialled when they fall, with a higher id each time.
    LinkUp {
        peer: ServerId,
        link: LinkId,
    },
    /// It fell: nothing more comes from it, what was sent last may or may not have arrived.
    LinkDown {
        peer: ServerId,
        link: LinkId,
    },
    /// A peer's link to us, of one of its lives, has closed.
    PeerClosed {
        peer: ServerId,
        incarnation: Incarnation,
        link: LinkId,
    },
    /// A request, on a peer's link to us. Bytes of an older link may still come behind those of a
    /// newer one (E3); dropping them is the brain's work.
    Request {
        peer: ServerId,
        incarnation: Incarnation,
        link: LinkId,
        message: ServerMessage<P>,
    },
    /// An answer, on our link to a peer.
    Answer {
        peer: ServerId,
        link: LinkId,
        message: ServerMessage<P>,
    },
    /// A client said hello on a new connection (C3).
    ClientHello {
        client: ClientId,
        session: Session,
    },
    ClientRequest {
        client: ClientId,
        session: Session,
        request: ClientRequest<P>,
    },
    /// The answer to [`Action::Store`].
    StoreDone {
        segment: SegmentId,
        io: IoId,
        result: StoreResult<P>,
    },
    /// The map moved on to `version`: these segments changed or are new, and these are gone.
    /// Versions arrive in order, starting with a full one; only segments that name this server
    /// (or whose replica it holds) matter here, more do no harm.
    Map {
        version: MapVersion,
        changed: Vec<SegmentConfig>,
        deleted: Vec<SegmentId>,
    },
    /// Somebody outside saw blocks that do not match the table, perhaps only because a write was
    /// under way. They are read through the store, under its locks: what is fine is let be, what
    /// is bad is repaired (R3). A hint: it may be dropped, and nothing answers it but reports.
    Suspect {
        segment: SegmentId,
        range: BlockRange,
    },
    /// Compare what the tables of all in-sync members say of `range`, and repair differences by
    /// majority. At most a message of blocks ([`crate::wire::BLOCKS_MAX`]), within the segment.
    /// Answered by exactly one [`Action::Compared`] under `io`, which is the asker's own number.
    Compare {
        segment: SegmentId,
        range: BlockRange,
        io: IoId,
    },
}

/// Something to do. In the order given; sends of one link keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// On our link to `peer`; dropped by the hands if that link is no longer the current one.
    Send {
        peer: ServerId,
        link: LinkId,
        message: ServerMessage<P>,
    },
    /// On the peer's link to us that the request came by; dropped if it is gone.
    Respond {
        peer: ServerId,
        incarnation: Incarnation,
        link: LinkId,
        message: ServerMessage<P>,
    },
    /// Close our link to `peer` and dial anew.
    ResetLink {
        peer: ServerId,
        link: LinkId,
    },
    Reply {
        client: ClientId,
        session: Session,
        reply: ClientReply<P>,
    },
    /// Requests of one segment run in this order where they overlap.
    Store {
        segment: SegmentId,
        io: IoId,
        request: StoreRequest<P>,
    },
    /// To consensus. No answer is awaited: the map shows what became of it. May be lost.
    Propose(Command),
    /// For the log, the counters and the failure score.
    Report(Report),
    /// The end of [`Event::Compare`], within a few seconds of it.
    Compared {
        io: IoId,
        segment: SegmentId,
        outcome: Comparison,
    },
}

/// What a comparison of in-sync members came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    /// These blocks differed, and are equal again.
    Repaired {
        blocks: Vec<u32>,
    },
    /// These still differ, or are bad: no copy of what they should hold could be read.
    Unresolved {
        blocks: Vec<u32>,
    },
    /// Another server leads the segment, or nobody does.
    NotPrimary,
    /// It could not be done now: a member is away, the epoch changed, the segment is being handed
    /// over, or too much else is going on. To be asked again.
    Busy,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// This server's replica failed and is out (a device error).
    ReplicaFaulted {
        segment: SegmentId,
        error: String,
    },
    /// Blocks whose data did not match their checksum, and whether good ones replaced them.
    Mismatch {
        segment: SegmentId,
        blocks: Vec<u32>,
        repaired: bool,
    },
    /// Blocks that members hold differently though each copy may verify, and whether they are
    /// equal again.
    Diverged {
        segment: SegmentId,
        blocks: Vec<u32>,
        repaired: bool,
    },
    /// At an activation no copy of a block verified; the majority's, or ours, was taken (F2).
    Unverified {
        segment: SegmentId,
        block: u32,
    },
    /// This server is a member of a segment that was active, and has no file of it.
    ReplicaMissing {
        segment: SegmentId,
    },
    Activated {
        segment: SegmentId,
        epoch: Epoch,
    },
    /// This server leads a segment, and its disk has owed an answer for so long that another member
    /// is to lead.
    DiskHangs {
        segment: SegmentId,
    },
    /// A peer was too slow to acknowledge, and its eviction proposed (W5).
    SlowPeer {
        segment: SegmentId,
        peer: ServerId,
    },
}

/// A replica found on disk at start.
#[derive(Clone, Debug)]
pub struct FoundReplica {
    pub meta: ReplicaMeta,
    /// Regions whose intent bit is set: in doubt.
    pub in_doubt: Vec<BlockRange>,
}
