//! Syncer: one thread of a server for what blocks in the file system: making and deleting
//! replicas. A shard's thread never waits for it.
//!
//! Invariant: jobs are done one after the other, in the order they came; each is answered once,
//! by a wake-up of the shard that sent it.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, unbounded};
use reactor::Waker;
use smt::store::ReplicaMeta;

use super::data_dir::Space;
use super::error::Result;
use super::files::{self, Place, ReplicaFiles};
use super::layout::Identity;

#[derive(Debug)]
enum What {
    Create { meta: Box<ReplicaMeta>, identity: Identity },
    Delete,
}

#[derive(Debug)]
struct Job {
    token: u64,
    place: Place,
    what: What,
    answers: Sender<Answer>,
    waker: Waker,
}

/// The end of a job.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) token: u64,
    /// The files of a replica that was made.
    pub(super) result: Result<Option<ReplicaFiles>>,
}

/// A handle to the thread, which ends once all handles and [`Line`]s are gone.
#[derive(Clone, Debug)]
pub struct Syncer {
    jobs: Sender<Job>,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(space: &Arc<Space>) -> std::io::Result<Syncer> {
        let (jobs, queue) = unbounded::<Job>();
        let space = Arc::clone(space);
        std::thread::Builder::new()
            .name("syncer".to_owned())
            .spawn(move || queue.into_iter().for_each(|job| perform(job, &space)))?;
        Ok(Syncer { jobs })
    }

    /// A shard's line to the thread.
    pub(super) fn line(&self, waker: Waker) -> Line {
        let (answers, inbox) = unbounded();
        Line { jobs: self.jobs.clone(), answers, inbox, waker }
    }
}

fn perform(job: Job, space: &Space) {
    let Job { token, place, what, answers, waker } = job;
    let result = match what {
        What::Create { meta, identity } => files::create(&place, &identity, space, *meta).map(Some),
        What::Delete => files::delete(&place, space).map(|()| None),
    };
    // A shard that is gone wants no answer.
    let _ = answers.send(Answer { token, result });
    waker.wake();
}

/// What a shard sends jobs by, and receives the answers.
#[derive(Debug)]
pub(super) struct Line {
    jobs: Sender<Job>,
    answers: Sender<Answer>,
    inbox: Receiver<Answer>,
    waker: Waker,
}

impl Line {
    pub(super) fn create(&self, token: u64, place: Place, identity: Identity, meta: ReplicaMeta) {
        self.send(token, place, What::Create { meta: Box::new(meta), identity });
    }

    pub(super) fn delete(&self, token: u64, place: Place) {
        self.send(token, place, What::Delete);
    }

    fn send(&self, token: u64, place: Place, what: What) {
        let job =
            Job { token, place, what, answers: self.answers.clone(), waker: self.waker.clone() };
        // The thread ends only when no line is left, unless it panicked: then we do too.
        self.jobs.send(job).expect("the syncer's thread runs as long as there are lines to it");
    }

    /// The next answer, if one has come.
    pub(super) fn receive(&self) -> Option<Answer> {
        self.inbox.try_recv().ok()
    }
}
