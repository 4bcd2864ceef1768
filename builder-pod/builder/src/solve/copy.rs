//! COPY and ADD carried out: each thing that an instruction names comes from where it is into the step's view.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use kiln_contract::source::Git;
use kiln_contract::{Failure, FailureClass, reason};

use super::checkout::Checkout;
use super::failure::{Halt, internal, of_engine};
use super::spool::spool_file;
use super::step::Steps;
use crate::engine::{Copied, Destination, EngineError, EngineErrorKind, Selection, View};
use crate::plan::{Action, CopyFrom, Item};
use crate::tree;

impl Steps<'_> {
    /// Copies one of the things that an instruction names.
    pub(super) fn item(
        &self,
        view: &View,
        to: &Destination,
        from: CopyFrom,
        item: &Item,
    ) -> Result<(), CopyFault> {
        let what = match item {
            Item::Inline(file) => {
                let now = || (self.world.clock)().parse().map_or(0, |time: jiff::Timestamp| time.as_second());
                let mtime = self.plan.epoch.unwrap_or_else(now);
                let send = |out: OwnedFd| Ok(tree::write_inline(file, mtime, File::from(out))?);
                return Ok(self.copy_stream(view, to, send)?);
            }
            Item::Url { url, name, checksum } => {
                return self.download(view, to, url, name, checksum.as_deref());
            }
            Item::Git { source, excludes } => {
                return self.repository(view, to, source, excludes);
            }
            Item::Files(what) => what,
        };
        match from {
            CopyFrom::Context => {
                self.copy_stream(view, to, |out| self.world.context.send(None, what, out))?;
            }
            CopyFrom::Named(context) => {
                let name = self.plan.contexts.get(context).map(String::as_str);
                self.copy_stream(view, to, |out| self.world.context.send(name, what, out))?;
            }
            CopyFrom::Stage(stage) => {
                let trees = self.whole(&self.stages.left(stage).trees)?;
                let copied = self.shared.engine.copy_tree(view, to, &trees, what)?;
                self.made_links(&view.upper, copied);
            }
            CopyFrom::Image(image) => {
                let trees = self.bases.trees(self.shared, image)?;
                let copied = self.shared.engine.copy_tree(view, to, &trees, what)?;
                self.made_links(&view.upper, copied);
            }
        }
        Ok(())
    }

    /// The courier downloads, into a file without a name; from there it is copied as files of ours are.
    fn download(
        &self,
        view: &View,
        to: &Destination,
        url: &str,
        name: &str,
        checksum: Option<&str>,
    ) -> Result<(), CopyFault> {
        let (mut file, fetched) = match self.early.file(url).filter(|_| checksum.is_none()) {
            Some(early) => early,
            None => {
                let file = spool_file(self.world.spool, &self.shared.name("download"))?;
                let fetched = self.shared.courier.fetch(url, checksum, file.as_fd());
                (file, fetched.map_err(Halt::from)?)
            }
        };
        let rewound = std::io::Seek::rewind(&mut file);
        rewound.map_err(|e| Halt::from(internal(format!("reading a download: {e}"))))?;
        // A server that does not say when: 1970, as BuildKit has it.
        let mtime = fetched.modified.unwrap_or(0);
        Ok(self.copy_stream(view, to, move |out| {
            Ok(tree::write_file(name, 0o600, mtime, fetched.size, &mut file, File::from(out))?)
        })?)
    }

    /// The courier checks out; here the files lie in a directory of ours while they are copied.
    fn repository(
        &self,
        view: &View,
        to: &Destination,
        source: &Git,
        excludes: &[String],
    ) -> Result<(), CopyFault> {
        let checkout = match self.early.checkout(source) {
            Some(early) => early,
            None => {
                let name = self.shared.name("checkout");
                Checkout::fetch(self.shared.courier, source, self.world.spool, &name)?
            }
        };
        let what = Selection { sources: vec![".".to_owned()], excludes: excludes.to_vec(), parents: false };
        let all = |_: &str, _: bool| tree::Ignored::No;
        let root = checkout.root();
        Ok(self.copy_stream(view, to, |out| Ok(tree::write_context(root, &what, &all, File::from(out))?))?)
    }

    /// Files of a context, the build's own or a named one.
    pub(super) fn copy_context(
        &self,
        view: &View,
        to: &Destination,
        name: Option<&str>,
        what: &Selection,
    ) -> Result<(), EngineError> {
        self.copy_stream(view, to, |out| self.world.context.send(name, what, out))
    }

    /// Files of ours go through a pipe: this side opens them, the helper writes them.
    fn copy_stream(
        &self,
        view: &View,
        to: &Destination,
        send: impl FnOnce(OwnedFd) -> Result<(), EngineError> + Send,
    ) -> Result<(), EngineError> {
        let copied = self.copy_through(view, to, send)?;
        self.made_links(&view.upper, copied);
        Ok(())
    }

    fn copy_through(
        &self,
        view: &View,
        to: &Destination,
        send: impl FnOnce(OwnedFd) -> Result<(), EngineError> + Send,
    ) -> Result<Copied, EngineError> {
        let fault = |message: String| EngineError { kind: EngineErrorKind::Internal, message };
        let (read, write) = std::io::pipe().map_err(|e| fault(format!("making a pipe: {e}")))?;
        let (sent, copied) = std::thread::scope(|s| {
            let sending = s.spawn(move || send(OwnedFd::from(write)));
            let copied = self.shared.engine.copy_stream(view, to, read.into());
            (sending.join(), copied)
        });
        let sent = sent.map_err(|_| fault("a thread that read the context panicked".into()))?;
        match (sent, copied) {
            (Ok(()), copied) => copied,
            // A missing source cuts the stream short, and so do both sides' other troubles: the one that names the
            // user's fault is the cause.
            (Err(sent), Err(copied)) => {
                Err(if copied.kind != EngineErrorKind::Internal && sent.kind == EngineErrorKind::Internal {
                    copied
                } else {
                    sent
                })
            }
            (Err(sent), Ok(_)) => Err(sent),
        }
    }
}

/// What kept files from being copied: the engine's trouble, or one that is a halt already.
pub(super) enum CopyFault {
    Engine(EngineError),
    Halt(Halt),
}

impl From<EngineError> for CopyFault {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<Halt> for CopyFault {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl CopyFault {
    pub(super) fn into_halt(self, action: &Action) -> Halt {
        match self {
            Self::Engine(error) => of_engine(&error, Some(action)),
            Self::Halt(halt) => halt,
        }
    }
}

/// A name can only be looked up where there are files; BuildKit fails on an empty image as well.
pub(super) fn check_owner(lowers: &[String], chown: &str) -> Result<(), Halt> {
    if !lowers.is_empty() || chown.bytes().all(|b| b.is_ascii_digit() || b == b':') {
        return Ok(());
    }
    let message =
        format!("--chown={chown}: an empty image has no /etc/passwd to look names up in; write numbers");
    Err(Failure::new(FailureClass::User, reason::NOT_FOUND, message).into())
}
