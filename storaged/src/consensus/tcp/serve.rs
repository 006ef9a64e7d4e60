//! The accepting end: reads requests, has the log answer them, writes the answers.
//!
//! Requests are answered beside each other, so that a proposal that waits for its majority holds
//! up no heartbeat; at most [`IN_FLIGHT_MAX`] at once, beyond which nothing more is read.

use std::io::{self, Cursor};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::super::{Consensus, StateMachine, Transport};
use super::{frame, tune};

/// Requests of one peer answered at once.
const IN_FLIGHT_MAX: usize = 256;

/// Serves one connection until its peer closes it. The preamble was consumed by the caller;
/// `rest` are bytes it read beyond that.
///
/// When this returns, in whatever way, and the peer is the leader, the caller may want to
/// [`Consensus::trigger_election`].
///
/// # Errors
/// When the connection broke, or the peer sent what is no frame.
pub async fn serve_connection<SM: StateMachine, T: Transport>(
    consensus: Consensus<SM, T>,
    stream: TcpStream,
    rest: Vec<u8>,
) -> io::Result<()> {
    tune(&stream)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = Cursor::new(rest).chain(BufReader::with_capacity(64 << 10, reader));
    let (answers, mut to_write) = mpsc::channel::<Vec<u8>>(IN_FLIGHT_MAX);
    // Ends with this function: dropping the set aborts what is left in it.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(answer) = to_write.recv().await {
            if writer.write_all(&answer).await.is_err() {
                // The reader sees the broken connection too, and reports it.
                return;
            }
        }
    });
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    while let Some((number, request)) = frame::read(&mut reader).await? {
        while tasks.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return Ok(());
        };
        let (consensus, answers) = (consensus.clone(), answers.clone());
        tasks.spawn(async move {
            let answer = consensus.handle(&request).await;
            match frame::encode(number, &answer) {
                // A closed channel: the connection broke meanwhile.
                Ok(frame) => drop(answers.send(frame).await),
                Err(error) => tracing::error!(%error, "cannot answer a request of the log"),
            }
            drop(slot);
        });
    }
    Ok(())
}
