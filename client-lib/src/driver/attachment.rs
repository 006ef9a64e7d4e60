//! Attachment: one volume, from the question for it to its end, and its brain.
//!
//! Invariant: the brain is told what happened in order, and what it asks for is done in order.
//! Nothing is submitted to it before its fence is complete (A1). An attachment that is closed stays
//! closed; what was submitted has been completed by then.
//!
//! Leaves to others: byte ranges (`jobs`), connections (`links`), when to ask for the map.

use std::collections::{HashMap, VecDeque};
use std::slice;

use reactor::Reactor;
use smt::client::{
    Client, ClientAction, ClientError, ClientEvent, ClientSettings, OpResult, VolumeConfig,
    VolumeRequest,
};
use smt::ids::{BLOCK_BYTES, MapVersion, OpId, ServerId, Session, Tick, VolumeId};
use smt::map::SegmentConfig;
use smt::message::{ClientReply, ClientRequest, ReplyBody, VolumeDelta};
use smt::wire::Message;

use super::jobs::{Job, Step};
use super::links::Links;
use super::request::{Completion, Request, VolumeHandle, VolumeState};
use crate::control::{AttachWish, Attached, MapDocument};
use crate::data::Data;
use crate::error::VolumeError;
use crate::options::{OpenMode, OpenOptions};

pub(super) const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);

/// The brains of several volumes count their requests apart, and a connection carries them all:
/// the upper bits of a request's number on the wire are its attachment's.
const REQUEST_BITS: u32 = 48;
/// Attachments of one driver, over its whole life.
pub(super) const ATTACHMENTS_MAX: usize = 1 << (64 - REQUEST_BITS);

/// What a turn of one attachment may use.
pub(super) struct Hands<'a> {
    pub reactor: &'a mut Reactor,
    pub links: &'a mut Links,
    pub completions: &'a mut VecDeque<Completion>,
    pub now: std::time::Duration,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is known of it, but perhaps its token.
    Opening {
        waiting: Vec<(u64, Request)>,
        last: Option<String>,
    },
    /// The map is here; older attachments are being made harmless (A1).
    Fencing {
        brain: Box<Client<Data>>,
        waiting: Vec<(u64, Request)>,
    },
    Open(Box<Client<Data>>),
    Closed(VolumeError),
}

#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) handle: VolumeHandle,
    pub name: String,
    pub options: OpenOptions,
    /// What the map gave us, for one that is not for reading alone.
    attached: Option<Attached>,
    /// 0 until the map has told.
    volume: VolumeId,
    phase: Phase,
    events: VecDeque<ClientEvent<Data>>,
    actions: Vec<ClientAction<Data>>,
    pub(super) jobs: HashMap<u64, Job>,
    pub(super) steps: HashMap<OpId, Step>,
    pub(super) last: u64,
    /// The brain has asked for the map, or a server's address is not known.
    pub wants_map: bool,
}

fn tick(now: std::time::Duration) -> Tick {
    Tick(u64::try_from(now.as_nanos()).expect("five centuries of nanoseconds fit a u64"))
}

pub(super) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits a u64")
}

impl From<ClientError> for VolumeError {
    fn from(error: ClientError) -> VolumeError {
        match error {
            ClientError::Io => VolumeError::Io,
            ClientError::Fenced => VolumeError::Fenced,
            ClientError::Gone => VolumeError::Gone,
            // We judged it before the brain did; so it is no range that the caller asked for.
            ClientError::OutOfRange | ClientError::Invalid => VolumeError::Invalid,
            ClientError::ReadOnly => VolumeError::ReadOnly,
        }
    }
}

/// The attachment a numbered request belongs to, and its number there.
pub(super) fn attachment_of(op: OpId) -> (usize, OpId) {
    let attachment = usize::try_from(op.0 >> REQUEST_BITS).expect("16 bits fit a usize");
    (attachment, OpId(op.0 & ((1 << REQUEST_BITS) - 1)))
}

impl Attachment {
    pub fn new(handle: VolumeHandle, name: &str, options: OpenOptions) -> Attachment {
        Attachment {
            handle,
            name: name.to_owned(),
            options,
            attached: None,
            volume: VolumeId(0),
            phase: Phase::Opening { waiting: Vec::new(), last: None },
            events: VecDeque::new(),
            actions: Vec::new(),
            jobs: HashMap::new(),
            steps: HashMap::new(),
            last: 0,
            wants_map: false,
        }
    }

    pub fn state(&self) -> VolumeState {
        match &self.phase {
            Phase::Opening { waiting: _, last } => VolumeState::Opening { last: last.clone() },
            Phase::Fencing { .. } => {
                let last = "not every segment's primary has answered the fence yet".to_owned();
                VolumeState::Opening { last: Some(last) }
            }
            Phase::Open(brain) => {
                VolumeState::Open { size_bytes: brain.size_blocks() * BLOCK_BYTES }
            }
            Phase::Closed(error) => VolumeState::Closed(error.clone()),
        }
    }

    fn brain(&self) -> Option<&Client<Data>> {
        match &self.phase {
            Phase::Open(brain) | Phase::Fencing { brain, .. } => Some(brain),
            Phase::Opening { .. } | Phase::Closed(_) => None,
        }
    }

    /// The volume's id and the version its map is known at, once it is open.
    pub fn known(&self) -> Option<(VolumeId, MapVersion)> {
        self.brain().map(|brain| (self.volume, brain.version()))
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        let waiting = match &self.phase {
            Phase::Opening { waiting, .. } | Phase::Fencing { waiting, .. } => waiting.len(),
            Phase::Open(_) | Phase::Closed(_) => 0,
        };
        self.jobs.len() + waiting
    }

    /// When a tick is wanted.
    pub fn next_wakeup(&self) -> Option<Tick> {
        self.brain().and_then(Client::next_wake)
    }

    /// What has to be attached before the map is of any use.
    pub fn wish(&self) -> Option<AttachWish> {
        let is_shared = match self.options.mode {
            OpenMode::ReadOnly => return None,
            OpenMode::Exclusive => false,
            OpenMode::Shared => true,
        };
        if self.attached.is_some() || !matches!(self.phase, Phase::Opening { .. }) {
            return None;
        }
        Some(AttachWish {
            attachment: self.handle.0,
            name: self.name.clone(),
            owner: self.options.owner_within_bounds().to_owned(),
            is_shared,
            is_forced: self.options.take_over,
        })
    }

    /// The map has given the volume to us; false if nobody waits for it any more.
    pub fn take(&mut self, attached: Attached) -> bool {
        let is_wanted = matches!(self.phase, Phase::Opening { .. });
        if is_wanted {
            self.attached = Some(attached);
        }
        is_wanted
    }

    /// Whether it is of a kind that has to be attached.
    pub fn attaches(&self) -> bool {
        self.options.mode != OpenMode::ReadOnly
    }

    /// The map has come: the first opens the volume, later ones are news like any other.
    pub fn learn(
        &mut self,
        document: MapDocument,
        up: impl Iterator<Item = (ServerId, Session)>,
        completions: &mut VecDeque<Completion>,
    ) {
        let read_only = self.options.mode == OpenMode::ReadOnly;
        let MapDocument { volume, size_bytes, version, .. } = document;
        let Attached { volume: attached_to, writer, version: attached_at } =
            self.attached.unwrap_or(Attached { volume, writer: 0, version: MapVersion(0) });
        match &mut self.phase {
            Phase::Closed(_) => {}
            Phase::Open(brain) | Phase::Fencing { brain, .. } if self.volume != volume => {
                // Another volume goes by this name now: ours was deleted.
                let to = version.max(brain.version());
                self.tell(ClientEvent::Delta(gone(self.volume, to)));
            }
            Phase::Open(_) | Phase::Fencing { .. } => {
                let (from, size_bytes) = (MapVersion(0), Some(size_bytes));
                let segments = document.segments;
                let delta = VolumeDelta { volume, from, to: version, size_bytes, segments };
                self.tell(ClientEvent::Delta(delta));
            }
            Phase::Opening { waiting: _, last } if version < attached_at => {
                *last = Some("no server's map has the attachment yet".to_owned());
            }
            Phase::Opening { waiting: _, last } if volume != attached_to => {
                // The one we attached was deleted, and this is another by its name.
                *last = Some("it was deleted and made anew".to_owned());
                self.attached = None;
            }
            Phase::Opening { waiting, last } => {
                let brain = config_of(document, writer, read_only).and_then(|config| {
                    let settings = ClientSettings::default();
                    Client::new(config, settings).map_err(|error| error.to_string())
                });
                let brain = match brain {
                    Ok(brain) => Box::new(brain),
                    Err(why) => {
                        *last = Some(format!("its map is no good: {why}"));
                        return;
                    }
                };
                let waiting = std::mem::take(waiting);
                self.phase = Phase::Fencing { brain, waiting };
                self.volume = volume;
                for (server, session) in up {
                    self.tell(ClientEvent::LinkUp { server, session });
                }
                if read_only {
                    self.unlock(completions);
                } else {
                    self.operate(Step::Fence, VolumeRequest::Fence);
                }
            }
        }
    }

    /// Nothing keeps the volume from being used any more.
    fn unlock(&mut self, completions: &mut VecDeque<Completion>) {
        match std::mem::replace(&mut self.phase, Phase::Closed(VolumeError::Stopped)) {
            Phase::Fencing { brain, waiting } => {
                self.phase = Phase::Open(brain);
                for (token, request) in waiting {
                    self.submit(token, request, completions);
                }
            }
            other @ (Phase::Opening { .. } | Phase::Open(_) | Phase::Closed(_)) => {
                self.phase = other;
            }
        }
    }

    /// The fence has ended. It fails only with the brain, which is seen to elsewhere: a server
    /// acknowledges it, has it come again, or knows a newer token.
    pub(super) fn on_fence(
        &mut self,
        result: &OpResult<Data>,
        completions: &mut VecDeque<Completion>,
    ) {
        if *result == OpResult::Done {
            tracing::debug!(volume = self.name, "attached, and every older attachment is fenced");
            self.unlock(completions);
        }
    }

    /// The map could not be had.
    pub fn failed_to_learn(&mut self, why: String) {
        if let Phase::Opening { waiting: _, last } = &mut self.phase {
            *last = Some(why);
        }
    }

    /// Nobody waits for the map any more.
    pub fn abandon(&mut self, error: VolumeError, completions: &mut VecDeque<Completion>) {
        match &self.phase {
            Phase::Opening { .. } | Phase::Fencing { .. } => self.end(error, completions),
            Phase::Open(_) | Phase::Closed(_) => {}
        }
    }

    /// Everything that has not ended ends so, whatever becomes of it, and nothing more begins.
    pub fn end(&mut self, error: VolumeError, completions: &mut VecDeque<Completion>) {
        let ended = std::mem::replace(&mut self.phase, Phase::Closed(error.clone()));
        let waiting = match ended {
            Phase::Opening { waiting, .. } | Phase::Fencing { waiting, .. } => waiting,
            Phase::Open(_) => Vec::new(),
            Phase::Closed(before) => {
                self.phase = Phase::Closed(before);
                Vec::new()
            }
        };
        let jobs = self.jobs.drain().map(|(_, job)| job.token);
        for token in waiting.into_iter().map(|(token, _)| token).chain(jobs) {
            let (volume, result) = (self.handle, Err(error.clone()));
            completions.push_back(Completion { volume, token, result });
        }
        self.steps.clear();
        self.events.clear();
        self.wants_map = false;
    }

    /// There is no such volume, says a server behind a read barrier.
    pub fn unknown(&mut self, completions: &mut VecDeque<Completion>) {
        match &mut self.phase {
            Phase::Opening { .. } => {
                self.abandon(VolumeError::Unknown { name: self.name.clone() }, completions);
            }
            Phase::Open(brain) | Phase::Fencing { brain, .. } => {
                let delta = gone(self.volume, brain.version());
                self.tell(ClientEvent::Delta(delta));
            }
            Phase::Closed(_) => {}
        }
    }

    /// Puts an event before the brain; [`Self::pump`] lets it think.
    pub fn tell(&mut self, event: ClientEvent<Data>) {
        if self.brain().is_some() {
            self.events.push_back(event);
        }
    }

    /// Has connections kept up to whoever holds a part of the volume, backups too: one of them is
    /// the next primary.
    pub fn want_servers(&mut self, configs: &[SegmentConfig], links: &mut Links) {
        for member in configs.iter().flat_map(|config| &config.members) {
            self.wants_map |= !links.want(member.server);
        }
    }

    /// A server's answer to one of this volume's requests.
    pub fn on_reply(
        &mut self,
        server: ServerId,
        session: Session,
        op: OpId,
        reply: ClientReply<Data>,
        links: &mut Links,
    ) {
        if let ReplyBody::Stale { config } = &reply.body {
            self.want_servers(slice::from_ref(config), links);
        }
        let ClientReply { op: _, segment, body } = reply;
        let reply = ClientReply { op, segment, body };
        self.tell(ClientEvent::Reply { server, session, reply });
    }

    /// Starts a request, or keeps it until the volume is open.
    pub fn submit(&mut self, token: u64, request: Request, completions: &mut VecDeque<Completion>) {
        let error = match &mut self.phase {
            Phase::Opening { waiting, .. } | Phase::Fencing { waiting, .. } => {
                return waiting.push((token, request));
            }
            Phase::Open(brain) => {
                let size_bytes = brain.size_blocks() * BLOCK_BYTES;
                match request.judge(size_bytes) {
                    Ok(()) => return self.begin(token, request, completions),
                    Err(error) => error,
                }
            }
            Phase::Closed(error) => error.clone(),
        };
        let (volume, result) = (self.handle, Err(error));
        completions.push_back(Completion { volume, token, result });
    }

    /// Lets the brain take what was put before it, and does what it asks for.
    pub fn pump(&mut self, hands: &mut Hands<'_>) {
        while let Some(event) = self.events.pop_front() {
            let (Phase::Open(brain) | Phase::Fencing { brain, .. }) = &mut self.phase else {
                return;
            };
            let mut actions = std::mem::take(&mut self.actions);
            brain.handle(tick(hands.now), event, &mut actions);
            for action in actions.drain(..) {
                match action {
                    ClientAction::Send { server, session, request } => {
                        let request = self.numbered(request);
                        let message = Message::Request(request);
                        hands.links.send(hands.reactor, server, session, message);
                    }
                    ClientAction::Complete { op, result } => {
                        self.on_complete(op, result, hands.completions);
                    }
                    ClientAction::Granted { op } => self.on_granted(op),
                    ClientAction::Pull => self.wants_map = true,
                }
            }
            self.actions = actions;
        }
        // A brain that is dead has ended everything, and does nothing more.
        if let Some(error) = self.brain().and_then(Client::dead) {
            self.end(VolumeError::from(error), hands.completions);
        }
    }

    fn numbered(&self, request: ClientRequest<Data>) -> ClientRequest<Data> {
        let ClientRequest { op, segment, epoch, writer, body } = request;
        assert!(op.0 >> REQUEST_BITS == 0, "request number {op} leaves no room for the volume's");
        let handle = u64::try_from(self.handle.0).expect("a usize fits a u64");
        let op = OpId(op.0 | handle << REQUEST_BITS);
        ClientRequest { op, segment, epoch, writer, body }
    }
}

fn gone(volume: VolumeId, to: MapVersion) -> VolumeDelta {
    VolumeDelta { volume, from: MapVersion(0), to, size_bytes: None, segments: Vec::new() }
}

/// The volume as its map says, for one who writes under this token.
fn config_of(document: MapDocument, writer: u64, read_only: bool) -> Result<VolumeConfig, String> {
    let MapDocument { volume, size_bytes, segment_bytes, version, segments, .. } = document;
    let segment_blocks = u32::try_from(segment_bytes / BLOCK_BYTES)
        .ok()
        .filter(|blocks| *blocks > 0)
        .ok_or_else(|| format!("the map has segments of {segment_bytes} bytes"))?;
    let size_blocks = size_bytes / BLOCK_BYTES;
    Ok(VolumeConfig {
        volume,
        version,
        size_blocks,
        segment_blocks,
        configs: segments,
        writer,
        read_only,
    })
}
