//! Stop: SIGTERM, SIGINT and the end of standard input, as a flag that the loop looks at.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use reactor::Waker;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::error::BridgeError;

/// Whether the bridge is to stop.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_asked: AtomicBool,
}

impl Stop {
    /// Watches on threads of its own; `waker` rings when it is time.
    pub fn watch(waker: Waker, stdin_too: bool) -> Result<Arc<Stop>, BridgeError> {
        let stop = Arc::new(Stop::default());
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(BridgeError::Signals)?;
        let (for_signals, ring) = (Arc::clone(&stop), waker.clone());
        let watch = move || {
            for _signal in signals.forever() {
                for_signals.ask(&ring);
            }
        };
        let named = thread::Builder::new().name("petrel-signals".to_owned());
        named.spawn(watch).map_err(BridgeError::Signals)?;
        if stdin_too {
            let for_stdin = Arc::clone(&stop);
            let watch = move || {
                let mut ignored = [0; 256];
                while matches!(std::io::stdin().read(&mut ignored), Ok(1..)) {}
                for_stdin.ask(&waker);
            };
            let named = thread::Builder::new().name("petrel-stdin".to_owned());
            named.spawn(watch).map_err(BridgeError::Signals)?;
        }
        Ok(stop)
    }

    fn ask(&self, waker: &Waker) {
        self.is_asked.store(true, Ordering::Release);
        waker.wake();
    }

    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }
}
