//! Control: questions to the cluster's HTTP side, asked on a thread of their own.
//!
//! Invariant: whoever asks never waits; each question gets exactly one answer, and the waker
//! rings after it was put down. Names are resolved here too, because that may block.
//!
//! Leaves to others: when to ask again.

mod document;
mod http;

use crossbeam::channel::{Receiver, Sender, unbounded};
use reactor::Waker;

pub use document::VolumeSummary;
pub(crate) use document::{MapDocument, ServerAddress};
use http::Http;

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
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Answer {
    Map { attachment: usize, result: Result<MapDocument, ControlError> },
    Volumes(Result<Vec<VolumeSummary>, ControlError>),
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
}

/// The asking side of the helper thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Control {
    /// Starts the thread; `waker` rings after each answer.
    pub fn start(urls: &[String], waker: Waker) -> Result<Control, ConnectError> {
        let mut http = Http::new(urls)?;
        let (questions, asked) = unbounded();
        let (given, answers) = unbounded();
        let serve = move || {
            for question in asked {
                let answer = match question {
                    Question::Map { attachment, name } => {
                        Answer::Map { attachment, result: http.map(&name) }
                    }
                    Question::Volumes => Answer::Volumes(http.volumes()),
                };
                if given.send(answer).is_err() {
                    return;
                }
                waker.wake();
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
        self.questions.send(question).expect("the thread lives as long as we ask");
    }

    pub fn ask_volumes(&self) {
        self.questions.send(Question::Volumes).expect("the thread lives as long as we ask");
    }

    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}
