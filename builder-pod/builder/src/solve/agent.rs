//! Connections of a running step to its ssh agents, handed on to the courier. The step never gets to the courier's own
//! socket: it connects to one that is made for it, and what the courier gets is that connection.

use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};

use super::failure::{Halt, internal};
use crate::courier::Courier;

/// Does `work` while the agents can be connected to.
pub(super) fn with<T>(
    agents: &[(String, UnixListener)],
    courier: &dyn Courier,
    work: impl FnOnce() -> T,
) -> Result<T, Halt> {
    if agents.is_empty() {
        return Ok(work());
    }
    let (over, working) = std::io::pipe().map_err(|e| internal(format!("making a pipe: {e}")))?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("agents".into())
            .spawn_scoped(scope, || accept(agents, courier, &over))
            .map_err(|e| internal(format!("starting a thread: {e}")))?;
        let done = work();
        drop(working);
        Ok(done)
    })
}

/// Until the other end of `over` is closed.
fn accept(agents: &[(String, UnixListener)], courier: &dyn Courier, over: &PipeReader) {
    loop {
        let mut events = vec![PollFd::new(over, PollFlags::IN)];
        events.extend(agents.iter().map(|(_, listener)| PollFd::new(listener, PollFlags::IN)));
        match poll(&mut events, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !events[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        for ((id, listener), event) in agents.iter().zip(&events[1..]) {
            if !event.revents().contains(PollFlags::IN) {
                continue;
            }
            // A process that gave up meanwhile is no matter.
            if let Ok((connection, _)) = listener.accept() {
                // One that can't be served is closed, which the step's program reports. A courier that is lost stops the
                // build by itself.
                let _ = courier.serve_agent(id, OwnedFd::from(connection));
            }
        }
    }
}
