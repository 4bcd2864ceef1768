//! The build's own timeout.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use kiln_contract::reason;

use crate::engine::Stop;

/// Stops a build when its time is over; not any more once dropped.
#[derive(Debug)]
pub(super) struct Timer {
    _alive: Sender<()>,
}

impl Timer {
    /// From now on; 0 seconds is no timeout.
    pub fn start(seconds: u64, stop: &Stop) -> Self {
        let (alive, gone) = channel::<()>();
        let stop = stop.clone();
        if seconds > 0 {
            // Without a thread there is no timeout of the build's own; the pod's deadline remains.
            let _ = std::thread::Builder::new().name("timeout".into()).spawn(move || {
                if gone.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
                    stop.stop(reason::TIMED_OUT);
                }
            });
        }
        Self { _alive: alive }
    }
}
