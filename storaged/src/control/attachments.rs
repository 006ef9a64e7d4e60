//! Attachments: who has a volume attached and still lives, as the leader hears it.
//!
//! Invariant: nothing here makes a write safe, tokens and fences do (A1 to A3). What was heard
//! only decides when a holder may be put out by somebody who did not ask for force (A4). It is in
//! the leader's memory alone, and whenever it has not led without a break, the leader counts
//! everybody as alive from then on: a holder is never blamed for an outage of ours.
//!
//! Leaves to others: the change of the map, which is a command like any other.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use smt::map::{AttachMode, Attachment, Command, Refused, Reply, held_by};
use smt::{ClientId, VolumeId};

use super::{ChangeError, Control, unix_ms};
use crate::consensus::Role;

/// A holder not heard from for this long may be put out. Three keep-alives, and what it takes to
/// find another server to send them to.
pub const SILENT_MAX: Duration = Duration::from_secs(10);
/// How often we look whether we lead.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// If we were not looking for this long, we were stopped, and heard nobody.
const BLIND_MAX: Duration = Duration::from_secs(2);
const _: () = assert!(LOOK_EVERY.as_millis() < BLIND_MAX.as_millis());

/// Who was heard from when. See the module's words.
#[derive(Debug)]
pub struct Alive {
    heard: Mutex<Heard>,
    /// Held from the look at a holder's life to the change that follows from it, so that of two who
    /// find it silent one gets the volume, and the other finds him alive.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Heard {
    /// The term we lead in, if we do.
    term: Option<u64>,
    /// Since when we lead in it without a break.
    since: Instant,
    looked: Instant,
    clients: BTreeMap<(VolumeId, ClientId), Instant>,
}

impl Heard {
    fn new(now: Instant) -> Heard {
        Heard { term: None, since: now, looked: now, clients: BTreeMap::new() }
    }

    fn look(&mut self, now: Instant, term: Option<u64>) {
        let was_blind = now.saturating_duration_since(self.looked) > BLIND_MAX;
        if term != self.term || was_blind {
            *self = Heard { term, ..Heard::new(now) };
        }
        self.looked = now;
    }

    fn silent(&self, now: Instant, volume: VolumeId, client: ClientId) -> Duration {
        // Stopped since the last look, perhaps in the middle of this very question.
        if now.saturating_duration_since(self.looked) > BLIND_MAX {
            return Duration::ZERO;
        }
        let heard = self.clients.get(&(volume, client)).copied().unwrap_or(self.since);
        now.saturating_duration_since(heard)
    }
}

impl Default for Alive {
    fn default() -> Alive {
        let heard = Mutex::new(Heard::new(Instant::now()));
        Alive { heard, turn: tokio::sync::Mutex::new(()) }
    }
}

impl Alive {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("nobody panics while holding it")
    }

    /// How long a client has not been heard from.
    pub fn silent(&self, volume: VolumeId, client: ClientId) -> Duration {
        self.heard().silent(Instant::now(), volume, client)
    }

    fn hear(&self, volume: VolumeId, client: ClientId) {
        let now = Instant::now();
        let clients = &mut self.heard().clients;
        clients.insert((volume, client), now);
        // Those who are gone for good: to forget them makes them no less silent.
        clients.retain(|_, heard| now.saturating_duration_since(*heard) < FORGOTTEN_AFTER);
    }

    fn are_silent(&self, volume: VolumeId, held: &Attachment) -> bool {
        held.clients.iter().all(|c| self.silent(volume, c.client) >= SILENT_MAX)
    }
}

/// What a client wants of a volume.
#[derive(Clone, Debug)]
pub struct Wish {
    pub volume: String,
    pub client: ClientId,
    pub owner: String,
    pub mode: AttachMode,
    /// Take it over from whoever has it under this token, and whether he lives or not.
    pub expect_writer: Option<u64>,
}

/// What a client got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Got {
    pub id: VolumeId,
    pub writer: u64,
    /// The map's version by which it is so.
    pub version: u64,
}

impl Control {
    /// Whether this server leads the map, as far as it can know. To be asked before what is kept
    /// here is used, and now and then.
    pub fn leads(&self) -> bool {
        let status = self.inner.log.status();
        let leads = status.role == Role::Leader && status.has_quorum;
        self.inner.alive.heard().look(Instant::now(), leads.then_some(status.term));
        leads
    }

    /// A4: attaches a client, by force if every holder is silent.
    ///
    /// # Errors
    /// [`Refused::Attached`] if another has it who lives, or not under the token expected.
    pub async fn attach(&self, wish: Wish) -> Result<Got, ChangeError> {
        let alive = &self.inner.alive;
        let _turn = alive.turn.lock().await;
        self.barrier().await?;
        // Whoever does not lead in one go since it heard them, judges nobody.
        if !self.leads() {
            return Err(ChangeError::Unreachable("the leader is changing".to_owned()));
        }
        let Wish { volume, client, owner, mode, mut expect_writer } = wish;
        let known = self.with_map(|map| {
            let known = map.volume_by_name(&volume)?;
            Some((known.id, known.writer, known.attachment.clone()?))
        });
        if let Some((id, writer, held)) = &known
            && expect_writer.is_none()
        {
            if !held.keeps_out(client, mode) {
                self.strike_off_silent_sharers(&volume, *id, *writer, held).await?;
            } else if alive.are_silent(*id, held) {
                tracing::warn!(volume, owner, ?held, "its holders are silent, it is taken over");
                expect_writer = Some(*writer);
            } else {
                // Those who stand by ask every second. The log need not hear of it.
                return Err(held_by(&volume, held).into());
            }
        }
        let at_unix_ms = unix_ms();
        let command = Command::Attach { volume, client, owner, mode, expect_writer, at_unix_ms };
        let (version, reply) = self.change_at(command).await?;
        let Reply::Attached { id, writer } = reply else {
            let why = "the map answered something else".to_owned();
            return Err(ChangeError::Refused(Refused::Refused { why }));
        };
        alive.hear(id, client);
        Ok(Got { id, writer, version })
    }

    /// Sharers that died without a word would leave no room for new ones in the end.
    async fn strike_off_silent_sharers(
        &self,
        volume: &str,
        id: VolumeId,
        writer: u64,
        held: &Attachment,
    ) -> Result<(), ChangeError> {
        for sharer in held.clients.iter().filter(|_| held.mode == AttachMode::Shared) {
            let client = sharer.client;
            if self.inner.alive.silent(id, client) >= SILENT_MAX {
                tracing::warn!(volume, owner = sharer.owner, "a silent sharer is struck off");
                let volume = volume.to_owned();
                self.change(Command::Detach { volume, client, writer }).await?;
            }
        }
        Ok(())
    }

    /// An operator's word that nobody is to have the volume, if its token is still `writer`. Who
    /// had it hears of that by his next keep-alive, and may write until then: only the fence of the
    /// next one stops him (A1).
    ///
    /// # Errors
    /// [`Refused::Attached`] if somebody has it under another token, or lives and `force` is not
    /// set.
    pub async fn detach_all(
        &self,
        name: &str,
        writer: u64,
        force: bool,
    ) -> Result<(), ChangeError> {
        let _turn = self.inner.alive.turn.lock().await;
        self.barrier().await?;
        if !self.leads() {
            return Err(ChangeError::Unreachable("the leader is changing".to_owned()));
        }
        let known = self.with_map(|map| {
            map.volume_by_name(name).map(|known| (known.id, known.writer, known.attachment.clone()))
        });
        let (id, newest, held) =
            known.ok_or_else(|| Refused::NotFound { what: format!("volume {name}") })?;
        let Some(held) = held else { return Ok(()) };
        if newest != writer || !(force || self.inner.alive.are_silent(id, &held)) {
            return Err(held_by(name, &held).into());
        }
        for client in held.clients {
            tracing::warn!(volume = name, owner = client.owner, force, "detached by an operator");
            let (volume, client) = (name.to_owned(), client.client);
            self.change(Command::Detach { volume, client, writer }).await?;
        }
        Ok(())
    }

    /// A sign of life; false if the client does not have the volume under this token any more.
    ///
    /// # Errors
    /// Nobody can say. None of a volume that is not there: false.
    pub async fn keep_alive(
        &self,
        name: &str,
        client: ClientId,
        writer: u64,
    ) -> Result<bool, ChangeError> {
        let held = || {
            self.with_map(|map| {
                let volume = map.volume_by_name(name)?;
                let held = volume.attachment.as_ref()?;
                let is_there = held.clients.iter().any(|c| c.client == client);
                (is_there && volume.writer == writer).then_some(volume.id)
            })
        };
        let id = match held() {
            Some(id) => Some(id),
            None => {
                // Our map may be older than the attachment: a no ends the client's work.
                self.barrier().await?;
                held()
            }
        };
        if let Some(id) = id {
            self.inner.alive.hear(id, client);
        }
        Ok(id.is_some())
    }
}

/// Looks again and again, so that a leadership with a break is not taken for one without.
pub async fn watch_leadership(control: Control) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        control.leads();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(3);
    const C: ClientId = ClientId(u64::MAX);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Looks every half second until `to`.
    fn lead(heard: &mut Heard, from: Instant, to: Instant, term: Option<u64>) {
        let mut now = from;
        while now <= to {
            heard.look(now, term);
            now += LOOK_EVERY;
        }
    }

    #[test]
    fn a_client_is_silent_since_it_was_heard_last() {
        let began = Instant::now();
        let mut heard = Heard::new(began);
        lead(&mut heard, began, began + s(5), Some(4));
        heard.clients.insert((V, C), began + s(5));
        lead(&mut heard, began + s(5), began + s(12), Some(4));
        assert_eq!(heard.silent(began + s(12), V, C), s(7));
        assert_eq!(heard.silent(began + s(12), VolumeId(4), C), s(12), "another volume's");
    }

    #[test]
    fn a_fresh_leader_counts_everybody_as_alive_from_its_election() {
        let began = Instant::now();
        let mut heard = Heard::new(began);
        lead(&mut heard, began, began + s(30), None);
        lead(&mut heard, began + s(30), began + s(34), Some(7));
        assert_eq!(heard.silent(began + s(34), V, C), s(4));
        heard.clients.insert((V, C), began + s(34));
        lead(&mut heard, began + s(34), began + s(40), Some(8));
        assert_eq!(heard.silent(began + s(40), V, C), s(6), "what was heard in another term");
    }

    #[test]
    fn a_leader_that_lost_its_majority_for_a_while_blames_nobody_for_it() {
        let began = Instant::now();
        let mut heard = Heard::new(began);
        lead(&mut heard, began, began + s(5), Some(4));
        heard.clients.insert((V, C), began + s(5));
        lead(&mut heard, began + s(5), began + s(20), None);
        heard.look(began + s(20), Some(4));
        assert_eq!(heard.silent(began + s(21), V, C), s(1));
    }

    #[test]
    fn a_leader_that_was_stopped_for_a_while_blames_nobody_for_it() {
        let began = Instant::now();
        let mut heard = Heard::new(began);
        heard.look(began, Some(4));
        heard.clients.insert((V, C), began);
        // The question was asked before it was stopped, and is answered before the next look.
        assert_eq!(heard.silent(began + s(60), V, C), s(0));
        heard.look(began + s(60), Some(4));
        assert_eq!(heard.silent(began + s(60), V, C), s(0));
        lead(&mut heard, began + s(60), began + s(65), Some(4));
        assert_eq!(heard.silent(began + s(65), V, C), s(5));
    }
}
