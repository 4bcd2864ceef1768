//! The helper process: enters its namespaces, then answers calls, each in a thread of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::view;
use super::wire::{self, Hello, MAX_BODY, Reply, Request};
use crate::engine::{EngineError, EngineErrorKind};
use crate::sandbox::fault::{At as _, Fault, Stage};
use crate::sandbox::{EMPTY_TREE, process};
use crate::tree;

/// The helper's main. Standard input is the packet socket, the working directory the trees directory.
pub fn main() -> ExitCode {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::from(70);
    };
    match start(&socket) {
        Ok(trees) => {
            if wire::send_hello(&socket, &Hello::Ready).is_ok() {
                serve(&socket, &Arc::new(trees));
            }
            // The builder is gone, and with it all who could want an answer.
            std::process::exit(0)
        }
        Err(fault) => {
            let _ = wire::send_hello(&socket, &Hello::Failed(fault));
            ExitCode::FAILURE
        }
    }
}

fn start(socket: &OwnedFd) -> Result<OwnedFd, Fault> {
    let lost = || "the builder is gone".to_owned();
    // A terminal's interrupt is for the builder to act on.
    let _ = rustix::process::setsid();
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .at(Stage::Launch, || "cannot forbid tracing of the helper".to_owned())?;
    // Network and queues are of no use to it, so it has none.
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: the flags leave the table of descriptors alone, and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .at(Stage::Unshare, || "cannot make the helper's namespaces (unshare)".to_owned())?;
    wire::send_hello(socket, &Hello::Unshared).at(Stage::Launch, lost)?;
    match wire::receive_hello(socket).at(Stage::Launch, lost)? {
        Hello::Mapped => {}
        other => {
            return Err(Fault::new(
                Stage::Launch,
                format!("the builder said {other:?} where Mapped was due"),
            ));
        }
    }
    process::become_root()?;
    rustix::process::umask(Mode::empty());
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .at(Stage::MakePrivate, || "cannot make mounts private".to_owned())?;
    match rustix::fs::mkdir(EMPTY_TREE, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => {}
        result => result.at(Stage::Exercise, || "cannot write to the workspace".to_owned())?,
    }
    rustix::fs::openat(CWD, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(Stage::Exercise, || "cannot open the workspace".to_owned())
}

fn serve(socket: &OwnedFd, trees: &Arc<OwnedFd>) {
    while let Ok(Some((_, fds))) = wire::receive(socket) {
        let mut fds = fds.into_iter();
        let Some(call) = fds.next().map(UnixStream::from) else { continue };
        let payload = fds.map(File::from).collect();
        let trees = Arc::clone(trees);
        // Without a thread the call's socket closes, which the builder takes for a failure.
        let _ =
            std::thread::Builder::new().name("call".to_owned()).spawn(move || answer(call, payload, &trees));
    }
}

fn answer(mut call: UnixStream, payload: Vec<File>, trees: &OwnedFd) {
    let mut bytes = Vec::new();
    let reply: Reply = match (&call).take(MAX_BODY).read_to_end(&mut bytes) {
        Ok(_) => match serde_json::from_slice(&bytes) {
            Ok(request) => perform(request, payload, trees),
            Err(error) => Err(internal(format!("the helper got a call that it can't read: {error}"))),
        },
        Err(_) => return,
    };
    if let Ok(bytes) = serde_json::to_vec(&reply) {
        // A builder that does not wait for the answer any more needs none.
        let _ = call.write_all(&bytes);
    }
}

fn perform(request: Request, payload: Vec<File>, trees: &OwnedFd) -> Reply {
    let mut payload = payload.into_iter();
    let needed =
        |payload: Option<File>| payload.ok_or_else(|| internal("the call brought no descriptor".to_owned()));
    match request {
        Request::Unpack { tree, media_type } => {
            view::check([&tree])?;
            rustix::fs::mkdir(&tree, Mode::from_raw_mode(0o755))
                .map_err(|error| internal(format!("cannot make tree {tree}: {error}")))?;
            let place = view::directory(&tree)?;
            value(tree::unpack(needed(payload.next())?, &media_type, place.as_fd(), payload.next())?)
        }
        Request::Index { media_type } => {
            let blob = needed(payload.next())?;
            value(tree::index(blob, &media_type, needed(payload.next())?)?)
        }
        Request::Settle { layers } => {
            let mut opened = Vec::with_capacity(layers.len());
            for (tree, unpacked) in layers {
                view::check([&tree])?;
                opened.push((view::directory(&tree)?, unpacked));
            }
            value(tree::settle(&opened)?)
        }
        Request::CopyStream { view, to } => {
            let root = view::for_copy(trees, &view, to.link)?;
            value(tree::copy_stream(root.as_fd(), &to, needed(payload.next())?)?)
        }
        Request::CopyTree { view, to, from, what } => {
            let from = view::readable(&from)?;
            let root = view::for_copy(trees, &view, to.link)?;
            value(tree::copy_tree(root.as_fd(), &to, from.as_fd(), &what)?)
        }
        Request::MakeDirectory { view, path, owner } => {
            let root = view::writable(trees, &view)?;
            value(tree::make_directory(root.as_fd(), &path, owner)?)
        }
        Request::MakeTree { tree, mode, owner } => value(view::make(&tree, mode, owner)?),
        Request::User { lowers, user } => value(tree::user(view::readable(&lowers)?.as_fd(), &user)?),
        Request::Owner { lowers, chown } => value(tree::owner(view::readable(&lowers)?.as_fd(), &chown)?),
        Request::Prepare { view } => value(view::prepare(trees, &view)?),
        Request::RemoveStubs { upper, stubs } => {
            view::check([&upper])?;
            value(tree::remove_stubs(view::directory(&upper)?.as_fd(), &stubs)?)
        }
        Request::Diff { view, stubs, epoch } => {
            view::check([&view.upper])?;
            let upper = view::directory(&view.upper)?;
            let lower = if view.lowers.is_empty() { None } else { Some(view::readable(&view.lowers)?) };
            let lower = lower.as_ref().map(OwnedFd::as_fd);
            let out = needed(payload.next())?;
            value(tree::diff(upper.as_fd(), lower, &stubs, epoch, out, payload.next())?)
        }
        Request::Archive { tree } => {
            view::check([&tree])?;
            value(tree::archive_tree(view::directory(&tree)?.as_fd(), needed(payload.next())?)?)
        }
        Request::Remove { trees: names } => {
            view::check(&names)?;
            for name in &names {
                tree::remove(trees.as_fd(), name)?;
                tree::remove(trees.as_fd(), &view::work_of(name))?;
            }
            value(())
        }
        Request::Clear => value(clear(trees)?),
    }
}

fn clear(trees: &OwnedFd) -> Result<(), EngineError> {
    let listed =
        std::fs::read_dir(".").map_err(|error| internal(format!("cannot list the workspace: {error}")))?;
    for entry in listed {
        let name =
            entry.map_err(|error| internal(format!("cannot list the workspace: {error}")))?.file_name();
        // Every name in there was given by us, so it is text.
        if let Some(name) = name.to_str().filter(|name| !view::is_ours(name)) {
            tree::remove(trees.as_fd(), name)?;
        }
    }
    Ok(())
}

fn value(result: impl serde::Serialize) -> Reply {
    serde_json::to_value(result)
        .map_err(|error| internal(format!("the helper can't write its answer: {error}")))
}

fn internal(message: String) -> EngineError {
    EngineError { kind: EngineErrorKind::Internal, message }
}
