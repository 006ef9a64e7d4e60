//! Attachments: who may change a volume, and the token that says so (S8, A1, A5).
//!
//! Invariant: a token is given out once, and only the newest of a volume is good. It is in every
//! config made after it was given out (A2), so that no primary of a later epoch knows an older one.
//! An attachment is taken over by force only from whom the taker saw: a take-over that comes late
//! must not put out somebody who took the volume meanwhile.
//!
//! Leaves to others: whether a holder still lives (the proposer judges, and uses force), and to
//! fence the primaries that serve already (the client that attached, A1).

use super::apply::{Map, not_found, refused};
use super::command::{Refused, Reply};
use super::types::*;
use crate::config::{Mutant, Settings};
use crate::ids::*;

/// Clients that share one volume.
pub const SHARERS_MAX: usize = 64;

/// Bytes of an owner's name.
pub const OWNER_BYTES_MAX: usize = 255;

impl Attachment {
    /// Whether it keeps out a client that wants the volume in this mode, and not by force.
    #[must_use]
    pub fn keeps_out(&self, client: ClientId, mode: AttachMode) -> bool {
        // Asked twice: the answer to the first may have been lost.
        let has_it = self.mode == mode && self.clients.iter().any(|c| c.client == client);
        let shares = self.mode == AttachMode::Shared && mode == AttachMode::Shared;
        !has_it && !shares
    }
}

impl Map {
    fn volume_mut(&mut self, name: &str) -> Result<&mut Volume, Refused> {
        self.names
            .get(name)
            .and_then(|id| self.volumes.get_mut(id))
            .ok_or_else(|| not_found(format!("volume {name}")))
    }

    pub(super) fn attach(
        &mut self,
        name: &str,
        attached: Attached,
        mode: AttachMode,
        expect_writer: Option<u64>,
        settings: &Settings,
    ) -> Result<Reply, Refused> {
        let volume = self.volume_mut(name)?;
        if attached.owner.len() > OWNER_BYTES_MAX {
            return Err(refused(format!(
                "an owner's name has at most {OWNER_BYTES_MAX} bytes, not {}",
                attached.owner.len()
            )));
        }
        if let Some(held) = &mut volume.attachment {
            let is_there = held.clients.iter().any(|c| c.client == attached.client);
            if is_there && held.mode == mode {
                return Ok(Reply::Attached { id: volume.id, writer: volume.writer });
            }
            let is_kept_out = match expect_writer {
                Some(seen) => seen != volume.writer,
                None => held.keeps_out(attached.client, mode),
            };
            if is_kept_out {
                return Err(held_by(name, held));
            }
            if expect_writer.is_none() {
                if held.clients.len() >= SHARERS_MAX {
                    return Err(refused(format!(
                        "volume {name} is shared by {SHARERS_MAX} clients already"
                    )));
                }
                held.clients.push(attached);
                return Ok(Reply::Attached { id: volume.id, writer: volume.writer });
            }
        }
        if volume.writer == 0 || settings.holds(Mutant::S8TokenAgain) {
            volume.writer += 1;
        }
        volume.attachment = Some(Attachment { mode, clients: vec![attached] });
        Ok(Reply::Attached { id: volume.id, writer: volume.writer })
    }

    pub(super) fn detach(
        &mut self,
        name: &str,
        client: ClientId,
        writer: u64,
    ) -> Result<Reply, Refused> {
        let volume = self.volume_mut(name)?;
        if volume.writer == writer
            && let Some(held) = &mut volume.attachment
        {
            held.clients.retain(|c| c.client != client);
            if held.clients.is_empty() {
                volume.attachment = None;
            }
        }
        Ok(Reply::Done)
    }
}

/// Refused, because somebody has it.
#[must_use]
pub fn held_by(name: &str, held: &Attachment) -> Refused {
    let (client, owner) = held
        .clients
        .first()
        .map_or((ClientId(0), String::new()), |first| (first.client, first.owner.clone()));
    Refused::Attached { volume: name.to_owned(), client, owner }
}
