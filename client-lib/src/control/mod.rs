//! Control: questions to the cluster's HTTP side, asked on a thread of their own.
//!
//! Invariant: whoever asks never waits; a question for a map, a list or an attachment gets exactly
//! one answer, and the waker rings after it was put down. Names are resolved here too, because
//! that may block. What is attached is kept alive here (A4).
//!
//! Leaves to others: when to ask again.

mod document;
mod http;
mod keeper;

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use reactor::Waker;
use smt::ids::{MapVersion, VolumeId};

pub use document::VolumeSummary;
pub(crate) use document::{MapDocument, ServerAddress};
use http::Http;
use keeper::Keeper;

use crate::error::ConnectError;

/// What may be asked.
#[derive(Clone, Debug)]
enum Question {
    /// The map of the volume of this name; `attachment` comes back with the answer.
    Map {
        attachment: usize,
        name: String,
    },
    Volumes,
    Attach(AttachWish),
    /// The attachment is of no more use to us.
    Detach {
        attachment: usize,
    },
    DetachAll,
    /// The attachment was fenced.
    Lost {
        attachment: usize,
    },
    /// The attachment's volume is gone.
    Forget {
        attachment: usize,
    },
}

/// An attachment that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct AttachWish {
    pub attachment: usize,
    pub name: String,
    pub owner: String,
    pub is_shared: bool,
    pub is_forced: bool,
}

/// An attachment, as the map gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// A volume of the same name made later is another one, whose tokens start anew.
    pub volume: VolumeId,
    pub writer: u64,
    /// No map from before this will do to fence with (A1).
    pub version: MapVersion,
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Answer {
    Map {
        attachment: usize,
        result: Result<MapDocument, ControlError>,
    },
    Volumes(Result<Vec<VolumeSummary>, ControlError>),
    Attached {
        attachment: usize,
        result: Result<Attached, ControlError>,
    },
    /// The map has it attached to others. Who they are, if that could be learnt.
    Lost {
        attachment: usize,
        by: Option<String>,
    },
    AllDetached,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Nobody answered, or nobody in a way that can be used.
    #[error("no server answered: {tried}")]
    Unreachable {
        /// Who was asked, and what became of it.
        tried: String,
    },
    /// The cluster knows no such volume.
    #[error("there is no volume {name}")]
    UnknownVolume {
        /// The name asked for.
        name: String,
    },
    /// Another one has the volume attached.
    #[error("volume {name} is attached to {owner}")]
    Attached {
        /// The name asked for.
        name: String,
        /// Who has it.
        owner: String,
    },
    /// The cluster will not have it.
    #[error("volume {name}: {why}")]
    Refused {
        /// The name asked for.
        name: String,
        /// Why.
        why: String,
    },
}

/// How long the thread sleeps if nothing is asked and nobody to be kept alive.
const IDLE_MAX: Duration = Duration::from_secs(3600);

fn answer(http: &mut Http, keeper: &mut Keeper, question: Question) -> Vec<Answer> {
    let answer = match question {
        Question::Map { attachment, name } => {
            Some(Answer::Map { attachment, result: http.map(&name) })
        }
        Question::Volumes => Some(Answer::Volumes(http.volumes())),
        Question::Attach(wish) => Some(keeper.attach(http, wish)),
        Question::Detach { attachment } => {
            keeper.detach(http, attachment);
            None
        }
        Question::DetachAll => {
            keeper.detach_all(http);
            Some(Answer::AllDetached)
        }
        Question::Lost { attachment } => keeper.lost(http, attachment),
        Question::Forget { attachment } => {
            keeper.forget(attachment);
            None
        }
    };
    answer.into_iter().collect()
}

/// The asking side of the helper thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Control {
    /// Starts the thread; `waker` rings after each answer.
    pub fn start(urls: &[String], client: u64, waker: Waker) -> Result<Control, ConnectError> {
        let mut http = Http::new(urls)?;
        let (questions, asked) = unbounded();
        let (given, answers) = unbounded();
        let mut keeper = Keeper::new(client);
        let serve = move || {
            loop {
                let wait = keeper.wait().unwrap_or(IDLE_MAX);
                let mut answers = match asked.recv_timeout(wait) {
                    Ok(question) => answer(&mut http, &mut keeper, question),
                    Err(RecvTimeoutError::Timeout) => Vec::new(),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                // After each question too: many of them must not make us look dead.
                answers.extend(keeper.keep_alive(&mut http));
                for answer in answers {
                    if given.send(answer).is_err() {
                        return;
                    }
                    waker.wake();
                }
            }
        };
        std::thread::Builder::new()
            .name("petrel-map".to_owned())
            .spawn(serve)
            .map_err(|source| ConnectError::Thread { what: "map", source })?;
        Ok(Control { questions, answers })
    }

    pub fn ask_map(&self, attachment: usize, name: &str) {
        let question = Question::Map { attachment, name: name.to_owned() };
        self.ask(question);
    }

    pub fn ask_volumes(&self) {
        self.ask(Question::Volumes);
    }

    pub fn ask_attach(&self, wish: AttachWish) {
        self.ask(Question::Attach(wish));
    }

    pub fn detach(&self, attachment: usize) {
        self.ask(Question::Detach { attachment });
    }

    pub fn lost(&self, attachment: usize) {
        self.ask(Question::Lost { attachment });
    }

    pub fn forget(&self, attachment: usize) {
        self.ask(Question::Forget { attachment });
    }

    /// Gives back all that is attached, and waits for it, but not for long: what cannot be given
    /// back now runs out by our silence.
    pub fn detach_all(&self, patience: Duration) {
        self.ask(Question::DetachAll);
        let deadline = Instant::now() + patience;
        while let Ok(answer) = self.answers.recv_deadline(deadline) {
            if let Answer::AllDetached = answer {
                return;
            }
        }
        tracing::warn!("detaching takes too long; it is left to time");
    }

    fn ask(&self, question: Question) {
        self.questions.send(question).expect("the thread lives as long as we ask");
    }

    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}
