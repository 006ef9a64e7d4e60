//! Replies: what an answer does to its piece.

use super::Client;
use super::pieces::{Body, State};
use super::types::{ClientAction, ClientError};
use crate::ids::*;
use crate::map::SegmentConfig;
use crate::message::{ClientReply, ReplyBody};
use crate::payload::{Payload, Sums, verify};

impl<P: Payload> Client<P> {
    pub(super) fn on_reply(
        &mut self,
        now: Tick,
        server: ServerId,
        session: Session,
        reply: ClientReply<P>,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let ClientReply { op: id, segment, body } = reply;
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        let known = self.routes.get(piece.index).is_some_and(|route| route.segment == segment);
        let Some(asked) = &mut piece.asked else {
            return;
        };
        if !known || (asked.server, asked.session) != (server, session) {
            return;
        }
        asked.copies = asked.copies.saturating_sub(1);
        let copies = asked.copies;
        match body {
            ReplyBody::Done | ReplyBody::Data { .. } => self.on_success(now, id, body, actions),
            ReplyBody::Stale { config } => self.on_stale(now, id, &config, actions),
            ReplyBody::Retry { after_ns } => self.rest(now, id, after_ns),
            ReplyBody::Fenced => self.die(ClientError::Fenced, actions),
            ReplyBody::Gone { version } => {
                // A server that is behind does not know a young segment yet.
                if version >= self.routes.version {
                    self.die(ClientError::Gone, actions);
                } else {
                    self.rest(now, id, 0);
                }
            }
            ReplyBody::IoError => self.on_failure(now, id, copies, ClientError::Io, actions),
            ReplyBody::Invalid => self.on_failure(now, id, copies, ClientError::Invalid, actions),
        }
    }

    fn on_success(
        &mut self,
        now: Tick,
        id: OpId,
        body: ReplyBody<P>,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let Some(piece) = self.pieces.get(&id) else {
            return;
        };
        match (&piece.body, body) {
            (Body::Read { .. }, ReplyBody::Data { data, sums }) => {
                if self.is_whole(id, &data, &sums) {
                    self.end_piece(now, id, Ok(Some(data)), actions);
                } else {
                    self.on_mismatch(now, id, actions);
                }
            }
            (
                Body::Write { .. } | Body::Zero | Body::Flush { .. } | Body::Fence,
                ReplyBody::Done,
            ) => {
                self.end_piece(now, id, Ok(None), actions);
            }
            // An answer that does not fit its question: not one to trust, ask again.
            (Body::Read { .. }, _) => self.on_mismatch(now, id, actions),
            (Body::Write { .. } | Body::Zero | Body::Flush { .. } | Body::Fence, _) => {
                self.rest(now, id, 0);
            }
        }
    }

    /// Whether data is as long as was asked for, and matches its checksums.
    fn is_whole(&self, id: OpId, data: &P, sums: &Sums) -> bool {
        let Some(piece) = self.pieces.get(&id) else {
            return false;
        };
        self.routes.get(piece.index).is_some_and(|route| {
            data.blocks() == piece.range.count
                && verify(data, sums, route.segment, piece.range.first)
        })
    }

    fn on_mismatch(&mut self, now: Tick, id: OpId, actions: &mut Vec<ClientAction<P>>) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        piece.mismatches += 1;
        self.mismatches += 1;
        if piece.mismatches >= self.settings.mismatches_max {
            self.end_piece(now, id, Err(ClientError::Io), actions);
        } else {
            self.rest(now, id, 0);
        }
    }

    /// `copies` of the piece are still unanswered on this session. A change that one copy was
    /// refused may yet be made by another (C5); a read has no effect, and ends here.
    fn on_failure(
        &mut self,
        now: Tick,
        id: OpId,
        copies: u32,
        error: ClientError,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let is_read =
            self.pieces.get(&id).is_some_and(|piece| matches!(piece.body, Body::Read { .. }));
        if is_read || copies == 0 {
            self.end_piece(now, id, Err(error), actions);
        }
    }

    fn on_stale(
        &mut self,
        now: Tick,
        id: OpId,
        config: &SegmentConfig,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let Some(piece) = self.pieces.get(&id) else {
            return;
        };
        let index = piece.index;
        let sent_at = piece.epoch;
        let known = self.routes.get(index);
        if config.index == index && self.routes.take(config) {
            // Parked, so that it goes out with the others that wait for this.
            if let Some(piece) = self.pieces.get_mut(&id)
                && let State::Sent { .. } = piece.state
            {
                piece.state = State::Parked;
            }
            self.reroute(now, index, config.primary, actions);
        } else if known.is_some_and(|route| route.epoch > sent_at) {
            // It was sent at an epoch we know better by now.
            self.send(now, id, actions);
        } else {
            // The server is behind us: no redirect, or two of them could play ball with it.
            self.rest(now, id, 0);
        }
    }
}
