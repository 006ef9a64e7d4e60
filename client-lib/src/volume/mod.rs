//! Volume: what an application uses, from any thread, asynchronous or blocking.
//!
//! Invariant: dropping a future does not undo its operation, and never lets the driver touch
//! memory of the caller: data is copied on the caller's side.
//!
//! Leaves to others: the thread that does the work (`service`).

mod oneshot;
mod service;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use reactor::{Buffer, SharedBuffer};

use crate::driver::{ClusterConfig, Pieces, Request, VolumeHandle};
use crate::error::{ConnectError, VolumeError};
use crate::options::OpenOptions;
use oneshot::{Taker, oneshot};
use service::{Command, Service};

/// How long opening a volume waits for the cluster, unless told otherwise.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// An attachment to a cluster, with a thread of its own that lives as long as any clone of this
/// or any [`Volume`] opened through it.
#[derive(Clone)]
pub struct Cluster {
    service: Arc<Service>,
    open_timeout: Option<Duration>,
}

impl Cluster {
    /// Attaches to the cluster of these servers, given as `http://HOST:PORT`. Nobody is asked
    /// yet: a cluster that cannot be reached shows when a volume is opened.
    ///
    /// # Errors
    /// When a URL is none, or this machine cannot start a thread or an event loop.
    pub fn connect<U: Into<String>>(
        urls: impl IntoIterator<Item = U>,
    ) -> Result<Cluster, ConnectError> {
        let service = Arc::new(Service::start(ClusterConfig::new(urls))?);
        Ok(Cluster { service, open_timeout: Some(OPEN_TIMEOUT) })
    }

    /// How long [`Volume::open`] waits for the cluster before it gives up (30 s at first); for
    /// ever, if none. Operations on an open volume always wait for ever.
    #[must_use]
    pub fn with_open_timeout(mut self, timeout: Option<Duration>) -> Cluster {
        self.open_timeout = timeout;
        self
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("open_timeout", &self.open_timeout).finish_non_exhaustive()
    }
}

/// An open volume: a range of bytes that many servers keep. Clones are the same attachment.
///
/// Every operation starts when its method is called, and returns an [`Operation`] to be awaited,
/// or waited for with [`Operation::wait`].
#[derive(Clone)]
pub struct Volume {
    service: Arc<Service>,
    handle: VolumeHandle,
    name: Arc<str>,
    size_bytes: Arc<AtomicU64>,
}

impl Volume {
    /// Opens the volume of this name, to read and change it alone: it is attached, and fenced for
    /// whoever had it before. While another one has it, this waits. Opening it twice through one
    /// [`Cluster`] gives the same attachment.
    #[must_use = "a volume is open once this was awaited, or waited for"]
    pub fn open(cluster: &Cluster, name: &str) -> Opening {
        Volume::open_with(cluster, name, OpenOptions::default())
    }

    /// As [`Self::open`], otherwise than alone or without waiting.
    #[must_use = "a volume is open once this was awaited, or waited for"]
    pub fn open_with(cluster: &Cluster, name: &str, options: OpenOptions) -> Opening {
        let (giver, taker) = oneshot();
        let name = name.to_owned();
        let timeout = cluster.open_timeout;
        cluster.service.send(Command::Open { name: name.clone(), options, timeout, giver });
        Opening { taker, service: Arc::clone(&cluster.service), name }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Reads the bytes at `offset` into `buffer`, all of it. Until the operation has ended well,
    /// `buffer` is as it was.
    pub fn read<'a>(&self, offset: u64, buffer: &'a mut [u8]) -> Operation<'a> {
        let length_bytes = u64::try_from(buffer.len()).expect("a length fits a u64");
        self.submit(Request::Read { offset_bytes: offset, length_bytes }, Some(buffer))
    }

    /// Writes `data` at `offset`. Once this has ended well, it is durable on every server that
    /// the volume's segments ask for.
    pub fn write(&self, offset: u64, data: &[u8]) -> Operation<'static> {
        self.write_shared(offset, Buffer::from_slice(data).share())
    }

    /// As [`Self::write`], from memory that is shared instead of copied.
    pub fn write_shared(&self, offset: u64, data: SharedBuffer) -> Operation<'static> {
        self.submit(Request::Write { offset_bytes: offset, data }, None)
    }

    /// Makes `length` bytes at `offset` read as zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Operation<'static> {
        self.submit(Request::Zero { offset_bytes: offset, length_bytes: length }, None)
    }

    /// Tells that `length` bytes at `offset` are not needed any more. Whole blocks of 4 KiB in
    /// the range read as zeroes from then on; partial ones at its edges keep their bytes.
    pub fn discard(&self, offset: u64, length: u64) -> Operation<'static> {
        self.submit(Request::Discard { offset_bytes: offset, length_bytes: length }, None)
    }

    /// Waits until everything that was written before is durable, the servers' tables of
    /// checksums included.
    pub fn flush(&self) -> Operation<'static> {
        self.submit(Request::Flush, None)
    }

    fn submit<'a>(&self, request: Request, into: Option<&'a mut [u8]>) -> Operation<'a> {
        let (giver, taker) = oneshot();
        self.service.send(Command::Submit { volume: self.handle, request, giver });
        Operation { taker, into }
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .field("size_bytes", &self.size())
            .finish_non_exhaustive()
    }
}

/// An operation under way. It goes on when this is dropped; then nobody hears how it ended.
#[must_use = "how an operation ended is known once it was awaited, or waited for"]
pub struct Operation<'a> {
    taker: Taker<Result<Pieces, VolumeError>>,
    /// Where a read puts what it read.
    into: Option<&'a mut [u8]>,
}

impl Operation<'_> {
    /// Blocks this thread until the operation has ended.
    ///
    /// # Errors
    /// Why it failed, in which case it will not happen any more.
    pub fn wait(mut self) -> Result<(), VolumeError> {
        let result = self.taker.wait();
        self.take(result)
    }

    fn take(&mut self, result: Option<Result<Pieces, VolumeError>>) -> Result<(), VolumeError> {
        let pieces = result.unwrap_or(Err(VolumeError::Stopped))?;
        if let Some(mut rest) = self.into.take() {
            for piece in pieces {
                let (place, after) = rest.split_at_mut(piece.len());
                place.copy_from_slice(&piece);
                rest = after;
            }
        }
        Ok(())
    }
}

impl Future for Operation<'_> {
    type Output = Result<(), VolumeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.taker.poll(context));
        Poll::Ready(self.take(result))
    }
}

impl fmt::Debug for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").finish_non_exhaustive()
    }
}

/// A volume being opened.
pub struct Opening {
    taker: Taker<Result<(VolumeHandle, Arc<AtomicU64>), VolumeError>>,
    service: Arc<Service>,
    name: String,
}

impl Opening {
    /// Blocks this thread until the volume is open.
    ///
    /// # Errors
    /// When there is no such volume, or the cluster did not answer in time.
    pub fn wait(self) -> Result<Volume, VolumeError> {
        let result = self.taker.wait();
        self.take(result)
    }

    fn take(
        &self,
        result: Option<Result<(VolumeHandle, Arc<AtomicU64>), VolumeError>>,
    ) -> Result<Volume, VolumeError> {
        let (handle, size_bytes) = result.unwrap_or(Err(VolumeError::Stopped))?;
        let (service, name) = (Arc::clone(&self.service), Arc::from(self.name.as_str()));
        Ok(Volume { service, handle, name, size_bytes })
    }
}

impl Future for Opening {
    type Output = Result<Volume, VolumeError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.taker.poll(context));
        Poll::Ready(self.take(result))
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("name", &self.name).finish_non_exhaustive()
    }
}
