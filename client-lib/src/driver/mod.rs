//! Driver: one attachment to a cluster, on a reactor that belongs to somebody else.
//!
//! The owner turns its reactor, offers each event to [`Driver::on_event`], calls
//! [`Driver::tick`] once a turn, and takes what ended from [`Driver::completions`]. No thread is
//! crossed between a request and its answer; only maps are fetched on a thread of their own.
//!
//! A volume that is not for reading alone is attached first, which may mean to stand by while
//! another one has it, and given back by [`Driver::shut_down`].
//!
//! Invariant: a request is completed exactly once. It is completed with an error only when it can
//! not happen any more, and waits for as long as the cluster cannot be reached (C5).
//!
//! Leaves to others: where a segment lives and what is sent to whom (`smt::client`).

mod attachment;
mod bytes;
mod feed;
mod jobs;
mod links;
mod request;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use reactor::{Event, Reactor, StreamId, boot_time};
use smt::client::ClientEvent;
use smt::ids::{ClientId, ServerId, Session, Tick};
use smt::message::{ClientReply, VolumeDelta};
use smt::wire::{Message, WireError};

use crate::control::{Answer, Attached, Control, ControlError, MapDocument, VolumeSummary};
use crate::data::Data;
use crate::error::{ConnectError, VolumeError};
use crate::options::OpenOptions;
use attachment::{ATTACHMENTS_MAX, Attachment, Hands, attachment_of};
use feed::Feed;
use links::{Identity, Links, Silence};

pub use request::{Completion, Pieces, Request, VolumeHandle, VolumeState};

/// How often links and feeds are looked after, and the longest the owner's turn should wait.
const TICK: Duration = Duration::from_millis(100);
/// How long to wait before a map that could not be had is asked for again, at first and at most.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(50);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// How often one who stands by asks for the volume.
const STAND_BY: Duration = Duration::from_secs(1);
/// How long giving the volumes back may take at the end: a change of the map is a few ms, and a
/// daemon has 5 s to stop in, most of which its requests may need.
const DETACH_MAX: Duration = Duration::from_secs(1);
/// How often the map is asked for while a server that is to answer may be gone.
const ASK_IN_DOUBT: Duration = Duration::from_millis(400);

/// Which cluster to attach to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// HTTP addresses of its servers, `http://HOST:PORT`; one that answers is enough.
    pub urls: Vec<String>,
    /// Unique among all attachments, for ever: servers tell clients apart by it.
    pub client_id: u64,
}

impl ClusterConfig {
    /// An attachment of a random id.
    #[must_use]
    pub fn new<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> ClusterConfig {
        let urls = urls.into_iter().map(Into::into).collect();
        // The standard library draws this hasher's keys from the system's randomness; mixed with
        // the process and the time, so that no two threads of one process draw alike.
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(boot_time().as_nanos());
        ClusterConfig { urls, client_id: hasher.finish() }
    }
}

/// A volume and what is kept up for it beside its brain.
#[derive(Debug)]
struct Volume {
    attachment: Attachment,
    feed: Feed,
    /// A question for it, or for its map, is under way.
    is_asked: bool,
    /// What is attached is kept alive by the control thread.
    is_kept: bool,
    /// Whoever had it when we asked last.
    waits_for: Option<String>,
    asked_at: Duration,
    ask_at: Duration,
    backoff: Duration,
}

/// See the module's words.
#[derive(Debug)]
pub struct Driver {
    client: ClientId,
    /// The cluster's number, once a map has told it.
    cluster: Option<u64>,
    control: Control,
    links: Links,
    volumes: Vec<Volume>,
    completions: VecDeque<Completion>,
    listed: Option<Result<Vec<VolumeSummary>, ControlError>>,
    looked_after: Duration,
}

fn tick_of(now: Duration) -> Tick {
    Tick(u64::try_from(now.as_nanos()).expect("five centuries of nanoseconds fit a u64"))
}

impl Driver {
    /// An attachment without volumes. `reactor` is the one that every later call must be given.
    ///
    /// # Errors
    /// When a URL is none, or a thread cannot be started.
    pub fn new(config: ClusterConfig, reactor: &mut Reactor) -> Result<Driver, ConnectError> {
        let ClusterConfig { urls, client_id } = config;
        Ok(Driver {
            client: ClientId(client_id),
            cluster: None,
            control: Control::start(&urls, client_id, reactor.waker())?,
            links: Links::default(),
            volumes: Vec::new(),
            completions: VecDeque::new(),
            listed: None,
            looked_after: Duration::ZERO,
        })
    }

    /// Starts opening a volume. It may be used at once: what is submitted waits until it is open,
    /// which may be until another one has given it back.
    ///
    /// # Panics
    /// When called more than 65,535 times.
    pub fn open_volume(&mut self, name: &str, options: OpenOptions) -> VolumeHandle {
        assert!(self.volumes.len() < ATTACHMENTS_MAX, "a driver opens {ATTACHMENTS_MAX} volumes");
        let handle = VolumeHandle(self.volumes.len());
        self.volumes.push(Volume {
            attachment: Attachment::new(handle, name, options),
            feed: Feed::new(handle.0),
            is_asked: false,
            is_kept: false,
            waits_for: None,
            asked_at: Duration::ZERO,
            ask_at: Duration::ZERO,
            backoff: ASK_AGAIN_MIN,
        });
        self.ask(handle.0);
        handle
    }

    /// How far the opening of a volume has come, and how large it is.
    #[must_use]
    pub fn state(&self, volume: VolumeHandle) -> VolumeState {
        self.volumes[volume.0].attachment.state()
    }

    /// Starts a request; a [`Completion`] with its `token` follows, perhaps at once.
    pub fn submit(
        &mut self,
        reactor: &mut Reactor,
        volume: VolumeHandle,
        token: u64,
        request: Request,
    ) {
        let attachment = &mut self.volumes[volume.0].attachment;
        attachment.submit(token, request, &mut self.completions);
        self.pump(reactor, volume.0);
    }

    /// Gives up on opening a volume that is not open yet: it is closed with `error`, and so is
    /// all that waits for it. Does nothing to a volume that is open.
    pub fn abandon(&mut self, volume: VolumeHandle, error: VolumeError) {
        let Volume { attachment, is_kept, .. } = &mut self.volumes[volume.0];
        attachment.abandon(error, &mut self.completions);
        let is_closed = matches!(attachment.state(), VolumeState::Closed(_));
        if is_closed && std::mem::take(is_kept) {
            self.control.detach(volume.0);
        }
    }

    /// Gives back a volume that nobody uses any more. What is under way on it is completed as
    /// stopped, and so is whatever its handle is used for later.
    pub fn close(&mut self, volume: VolumeHandle) {
        self.volumes[volume.0].attachment.end(VolumeError::Stopped, &mut self.completions);
        self.look_at_end(volume.0);
    }

    /// Whether something that was asked of a volume has not ended.
    #[must_use]
    pub fn is_busy(&self, volume: VolumeHandle) -> bool {
        self.volumes[volume.0].attachment.in_flight() > 0
    }

    /// How many volumes may still be opened.
    #[must_use]
    pub fn handles_left(&self) -> usize {
        ATTACHMENTS_MAX - self.volumes.len()
    }

    /// What has ended since the last call.
    pub fn completions(&mut self) -> impl Iterator<Item = Completion> {
        self.completions.drain(..)
    }

    /// Requests that have not ended, of all volumes.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.volumes.iter().map(|volume| volume.attachment.in_flight()).sum()
    }

    /// Asks for the list of volumes; [`Self::volumes_listed`] gives it when it has come.
    pub fn list_volumes(&mut self) {
        self.control.ask_volumes();
    }

    /// The answer to [`Self::list_volumes`], once for each.
    pub fn volumes_listed(&mut self) -> Option<Result<Vec<VolumeSummary>, ControlError>> {
        self.listed.take()
    }

    /// How long the owner's turn may wait, if nothing happens.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let now = tick_of(boot_time());
        let due = self.volumes.iter().filter_map(|volume| volume.attachment.next_wakeup()).min();
        due.map_or(TICK, |due| Duration::from_nanos(due.since(now)).min(TICK))
    }

    /// Takes what concerns this attachment; gives back what does not. `Woken` is always given
    /// back, since others may have used the waker too.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: Event) -> Option<Event> {
        match event {
            Event::Woken => {
                self.take_answers(reactor);
                Some(Event::Woken)
            }
            Event::Connected { stream } if self.links.owns(stream) => {
                self.links.connected(stream, boot_time());
                None
            }
            Event::Drained { stream } if self.links.owns(stream) => None,
            Event::Received { stream } if self.links.owns(stream) => {
                self.read_messages(reactor, stream);
                None
            }
            Event::Payload { stream, buffer } => {
                let Some((server, reader)) = self.links.reader(stream) else {
                    return Some(Event::Payload { stream, buffer });
                };
                let message = reader.filled(reactor, stream, buffer);
                if self.take(reactor, stream, server, message) {
                    self.read_messages(reactor, stream);
                }
                None
            }
            Event::Closed { stream, error } => {
                if !self.links.owns(stream) {
                    return Some(Event::Closed { stream, error });
                }
                tracing::debug!(?error, "a server closed its connection");
                self.on_closed(reactor, stream);
                None
            }
            other @ (Event::Connected { .. }
            | Event::Drained { .. }
            | Event::Received { .. }
            | Event::Accepted { .. }
            | Event::AcceptFailed { .. }
            | Event::Released { .. }
            | Event::Read { .. }
            | Event::Wrote { .. }
            | Event::Synced { .. }
            | Event::Allocated { .. }
            | Event::Timer { .. }) => Some(other),
        }
    }

    /// Looks after what time brings. To be called once after each turn of the reactor.
    pub fn tick(&mut self, reactor: &mut Reactor) {
        self.take_answers(reactor);
        let now = boot_time();
        let at = tick_of(now);
        let is_time = now.saturating_sub(self.looked_after) >= TICK;
        for index in 0..self.volumes.len() {
            let attachment = &mut self.volumes[index].attachment;
            if is_time || attachment.next_wakeup().is_some_and(|due| due <= at) {
                attachment.tell(ClientEvent::Tick);
                self.pump(reactor, index);
            }
        }
        if is_time {
            self.looked_after = now;
            if self.in_flight() == 0 {
                self.links.settle();
            }
            for silence in self.links.silent(now) {
                match silence {
                    Silence::Probe { server, session } => self.probe(reactor, server, session),
                    Silence::Cut { stream } => self.hang_up(reactor, stream),
                }
            }
        }
        self.look_after_feeds(reactor, now);
        self.ask_for_maps(now);
        // Cheap when nothing is due; and a redial is due sooner than the next full tick.
        self.dial(reactor, now);
    }

    /// Closes every connection, once what is queued on it has left, and gives the volumes back,
    /// for which it may block for a second. Requests that have not ended are completed as stopped;
    /// what may still become of them is past before the next one has a volume, by his fence.
    pub fn shut_down(&mut self, reactor: &mut Reactor) {
        for volume in &mut self.volumes {
            volume.attachment.end(VolumeError::Stopped, &mut self.completions);
        }
        self.links.close_all(reactor);
        // One that is asked for may be given at any moment.
        if self.volumes.iter().any(|v| v.is_kept || v.is_asked && v.attachment.attaches()) {
            self.control.detach_all(DETACH_MAX);
        }
    }

    fn dial(&mut self, reactor: &mut Reactor, now: Duration) {
        if let Some(cluster) = self.cluster {
            let identity = Identity { client: self.client, cluster };
            self.links.dial(reactor, identity, now);
        }
    }

    fn pump(&mut self, reactor: &mut Reactor, index: usize) {
        let mut hands = Hands {
            reactor,
            links: &mut self.links,
            completions: &mut self.completions,
            now: boot_time(),
        };
        self.volumes[index].attachment.pump(&mut hands);
        self.look_at_end(index);
    }

    /// An attachment that has ended is not kept alive any longer.
    fn look_at_end(&mut self, index: usize) {
        let Volume { attachment, is_kept, .. } = &mut self.volumes[index];
        if let VolumeState::Closed(error) = attachment.state()
            && std::mem::take(is_kept)
        {
            match error {
                VolumeError::Fenced => self.control.lost(index),
                VolumeError::Gone => self.control.forget(index),
                _ => self.control.detach(index),
            }
        }
    }

    /// Puts an event before every brain.
    fn tell_all(&mut self, reactor: &mut Reactor, event: &ClientEvent<Data>) {
        for index in 0..self.volumes.len() {
            self.volumes[index].attachment.tell(event.clone());
            self.pump(reactor, index);
        }
    }

    fn take_answers(&mut self, reactor: &mut Reactor) {
        while let Some(answer) = self.control.answer() {
            match answer {
                Answer::Volumes(list) => self.listed = Some(list),
                Answer::Map { attachment, result } => self.take_map(reactor, attachment, result),
                Answer::Attached { attachment, result } => self.take_volume(attachment, result),
                Answer::Lost { attachment, by } => {
                    let Volume { attachment, is_kept, .. } = &mut self.volumes[attachment];
                    *is_kept = false;
                    let by = by.as_deref().unwrap_or("somebody");
                    tracing::error!(volume = attachment.name, by, "fenced: it was taken over");
                    attachment.end(VolumeError::Fenced, &mut self.completions);
                }
                // Nobody waits for it any more.
                Answer::AllDetached => {}
            }
        }
    }

    fn take_volume(&mut self, index: usize, result: Result<Attached, ControlError>) {
        let volume = &mut self.volumes[index];
        let Volume { attachment, is_asked, is_kept, waits_for, .. } = volume;
        *is_asked = false;
        match result {
            Ok(attached) if attachment.take(attached) => {
                tracing::info!(volume = attachment.name, writer = attached.writer, "attached");
                *is_kept = true;
                volume.backoff = ASK_AGAIN_MIN;
                self.ask(index);
            }
            // Given up on, or stopped, since it was asked for.
            Ok(_) => self.control.detach(index),
            Err(ControlError::Attached { name, owner }) => {
                if !attachment.options.wait {
                    let error = VolumeError::Attached { name, owner };
                    return attachment.abandon(error, &mut self.completions);
                }
                attachment.failed_to_learn(format!("it is attached to {owner}"));
                // Others took it as we tried to: two who take it from each other serve nobody.
                attachment.options.take_over = false;
                if waits_for.as_ref() != Some(&owner) {
                    tracing::info!(volume = name, owner, "standing by: it is attached");
                    *waits_for = Some(owner);
                }
                attachment.wants_map = true;
                volume.ask_at = boot_time() + STAND_BY;
            }
            Err(ControlError::Refused { name, why }) => {
                let error = VolumeError::Refused { name, why };
                attachment.abandon(error, &mut self.completions);
            }
            Err(ControlError::UnknownVolume { name: _ }) => {
                attachment.unknown(&mut self.completions);
            }
            Err(ControlError::Unreachable { tried }) => {
                tracing::debug!(volume = attachment.name, tried, "not attached; asking again");
                attachment.failed_to_learn(tried);
                volume.ask_later(boot_time());
            }
        }
    }

    /// Asks for what a volume needs next: itself, or its map.
    fn ask(&mut self, index: usize) {
        let Volume { attachment, is_asked, .. } = &mut self.volumes[index];
        attachment.wants_map = false;
        *is_asked = true;
        match attachment.wish() {
            Some(wish) => self.control.ask_attach(wish),
            None => self.control.ask_map(index, &attachment.name),
        }
    }

    fn take_map(
        &mut self,
        reactor: &mut Reactor,
        index: usize,
        result: Result<MapDocument, ControlError>,
    ) {
        let volume = &mut self.volumes[index];
        volume.is_asked = false;
        match result {
            Ok(document) => {
                let cluster = *self.cluster.get_or_insert(document.cluster);
                if smt::lineage::is_other_generation(cluster, document.cluster) {
                    // What this attachment wrote may be lost, and its token is void.
                    tracing::error!("the cluster was recovered: this attachment ends");
                    volume.attachment.end(VolumeError::Fenced, &mut self.completions);
                    self.look_at_end(index);
                    return;
                }
                if cluster != document.cluster {
                    let found = document.cluster;
                    tracing::error!(cluster, found, "a map of another cluster: check the URLs");
                    let why = format!("the URLs lead to clusters {cluster} and {found}");
                    volume.attachment.failed_to_learn(why);
                    volume.ask_later(boot_time());
                    return;
                }
                self.links.learn(&document.servers);
                volume.attachment.wants_map = false;
                volume.attachment.want_servers(&document.segments, &mut self.links);
                let (up, completions) = (self.links.up(), &mut self.completions);
                volume.attachment.learn(document, up, completions);
                let is_opening = matches!(volume.attachment.state(), VolumeState::Opening { .. });
                if is_opening || volume.attachment.wants_map {
                    volume.ask_later(boot_time());
                } else {
                    volume.backoff = ASK_AGAIN_MIN;
                }
                self.dial(reactor, boot_time());
            }
            Err(ControlError::UnknownVolume { name: _ }) => {
                volume.attachment.unknown(&mut self.completions);
            }
            Err(
                error @ (ControlError::Attached { .. }
                | ControlError::Refused { .. }
                | ControlError::Unreachable { .. }),
            ) => {
                let tried = error.to_string();
                let name = &volume.attachment.name;
                tracing::debug!(volume = name, tried, "no map; asking again");
                volume.attachment.failed_to_learn(tried);
                volume.ask_later(boot_time());
            }
        }
        self.pump(reactor, index);
    }

    fn ask_for_maps(&mut self, now: Duration) {
        let is_in_doubt = self.links.is_in_doubt();
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            if is_in_doubt && volume.attachment.in_flight() > 0 && !volume.is_asked {
                let rested = now.saturating_sub(volume.asked_at) >= ASK_IN_DOUBT;
                volume.attachment.wants_map |= rested;
            }
            if volume.attachment.wants_map && !volume.is_asked && now >= volume.ask_at {
                volume.asked_at = now;
                self.ask(index);
            }
        }
    }

    fn read_messages(&mut self, reactor: &mut Reactor, stream: StreamId) {
        while let Some((server, reader)) = self.links.reader(stream) {
            let message = reader.next(reactor, stream);
            if !self.take(reactor, stream, server, message) {
                return;
            }
        }
    }

    /// Handles one message; false when there was none, or the stream is of no more use.
    fn take(
        &mut self,
        reactor: &mut Reactor,
        stream: StreamId,
        server: ServerId,
        message: Result<Option<Message<Data>>, WireError>,
    ) -> bool {
        match message {
            Ok(Some(message)) => {
                self.on_message(reactor, stream, message);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, %server, "closing a connection that talks nonsense");
                self.hang_up(reactor, stream);
                false
            }
        }
    }

    fn on_message(&mut self, reactor: &mut Reactor, stream: StreamId, message: Message<Data>) {
        let now = boot_time();
        match (self.links.session(stream), message) {
            (None, Message::Hello(hello)) => {
                let identity = Identity {
                    client: self.client,
                    cluster: self.cluster.expect("nobody is dialled before it is known"),
                };
                match self.links.welcomed(stream, hello, identity) {
                    Some((server, session)) => {
                        tracing::debug!(%server, %session, "connected");
                        self.tell_all(reactor, &ClientEvent::LinkUp { server, session });
                    }
                    None => self.hang_up(reactor, stream),
                }
            }
            (Some((server, session)), Message::Reply(reply)) => {
                self.links.heard(server, true);
                self.on_reply(reactor, server, session, reply);
            }
            (Some((server, session)), Message::Delta(delta)) => {
                self.links.heard(server, false);
                self.on_delta(reactor, (server, session), delta, now);
            }
            (
                _,
                Message::Hello(_)
                | Message::Request(_)
                | Message::Reply(_)
                | Message::Server(_)
                | Message::Subscribe { .. }
                | Message::Delta(_),
            ) => {
                tracing::warn!("closing a connection: a message out of place");
                self.hang_up(reactor, stream);
            }
        }
    }

    fn on_reply(
        &mut self,
        reactor: &mut Reactor,
        server: ServerId,
        session: Session,
        reply: ClientReply<Data>,
    ) {
        let (index, op) = attachment_of(reply.op);
        if let Some(volume) = self.volumes.get_mut(index) {
            volume.attachment.on_reply(server, session, op, reply, &mut self.links);
            self.pump(reactor, index);
        }
    }

    fn on_delta(
        &mut self,
        reactor: &mut Reactor,
        from: (ServerId, Session),
        delta: VolumeDelta,
        now: Duration,
    ) {
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            if volume.attachment.known().is_none_or(|(id, _)| id != delta.volume) {
                continue;
            }
            volume.feed.heard(from, now);
            volume.attachment.want_servers(&delta.segments, &mut self.links);
            volume.attachment.tell(ClientEvent::Delta(delta.clone()));
            self.pump(reactor, index);
        }
    }

    /// Closes a connection from our side.
    fn hang_up(&mut self, reactor: &mut Reactor, stream: StreamId) {
        reactor.close(stream);
        self.on_closed(reactor, stream);
    }

    fn on_closed(&mut self, reactor: &mut Reactor, stream: StreamId) {
        if let Some((server, session)) = self.links.closed(stream, boot_time()) {
            for volume in &mut self.volumes {
                volume.feed.closed((server, session));
            }
            self.tell_all(reactor, &ClientEvent::LinkDown { server, session });
        }
    }

    /// Keeps every open volume subscribed to one server that talks.
    fn look_after_feeds(&mut self, reactor: &mut Reactor, now: Duration) {
        for index in 0..self.volumes.len() {
            let Volume { attachment, feed, .. } = &mut self.volumes[index];
            let Some((volume, from)) = attachment.known() else {
                continue;
            };
            if let Some((server, session)) = feed.choose(self.links.up(), now) {
                let subscribe = Message::Subscribe { volume, from };
                self.links.send(reactor, server, session, subscribe);
            }
        }
    }

    /// Asks a silent server for a sign of life: a subscription is answered at once.
    fn probe(&mut self, reactor: &mut Reactor, server: ServerId, session: Session) {
        let known = self.volumes.iter().find_map(|volume| volume.attachment.known());
        if let Some((volume, from)) = known {
            self.links.send(reactor, server, session, Message::Subscribe { volume, from });
        }
    }
}

impl Volume {
    fn ask_later(&mut self, now: Duration) {
        self.attachment.wants_map = true;
        self.ask_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(ASK_AGAIN_MAX);
    }
}
