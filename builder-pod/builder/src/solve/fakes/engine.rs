//! An engine that notes what is asked of it, for tests.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Condvar;

use super::*;
use crate::engine::{
    Copied, Destination, Diff, Exit, MountSource, Output, Owner, Step, Unpacked, User, View,
};

/// Does nothing with files. A layer's bytes are its name, and its diff ID is that name's digest.
#[derive(Default)]
pub(crate) struct FakeEngine {
    pub notes: Notes,
    /// How a command ends; 0 when absent.
    pub codes: BTreeMap<String, i32>,
    pub out_of_memory: bool,
    /// Caches outlast a build.
    pub keeps_caches: bool,
    /// What caches hold when the build is over.
    pub holds: String,
    /// Where the sockets are.
    pub sockets: Mutex<BTreeMap<String, std::path::PathBuf>>,
    /// Commands that wait until the build is told to stop.
    pub endless: bool,
    /// The same for these.
    pub waits: Vec<&'static str>,
    /// Copies onto trees that are only looked at need more than looks.
    pub needs_content: bool,
    /// Copies make links.
    pub links: bool,
    /// Commands that wait for one another, and how long at most.
    pub meets: (Vec<&'static str>, std::time::Duration),
    /// When they have met the build is cancelled.
    pub cancels: bool,
    /// Which of them came, and a way to wait for them.
    pub came: (Mutex<Vec<String>>, Condvar),
    /// What a call (by its first word) fails with.
    pub fail: BTreeMap<&'static str, EngineError>,
}

impl FakeEngine {
    /// Notes whether all that are to meet run at the same time.
    fn meet(&self, command: &str) {
        let (who, patience) = &self.meets;
        if !who.contains(&command) {
            return;
        }
        let mut came = self.came.0.lock().unwrap();
        came.push(command.to_owned());
        self.came.1.notify_all();
        let (came, waited) =
            self.came.1.wait_timeout_while(came, *patience, |came| came.len() < who.len()).unwrap();
        drop(came);
        self.notes.add(format!("{} {command}", if waited.timed_out() { "alone" } else { "met" }));
        if waited.timed_out() {
            // The next one is not to meet who is gone.
            self.came.0.lock().unwrap().retain(|one| one != command);
        }
    }

    fn note(&self, word: &'static str, rest: &str) -> Result<(), EngineError> {
        self.notes.add(format!("{word} {rest}"));
        self.fail.get(word).cloned().map_or(Ok(()), Err)
    }

    fn copied(&self, view: &View) -> Result<Copied, EngineError> {
        if self.needs_content && view.lowers.iter().any(|tree| tree.starts_with('k')) {
            let message = "only a placeholder is there".to_owned();
            return Err(EngineError { kind: EngineErrorKind::Content, message });
        }
        Ok(Copied { links: self.links })
    }
}

fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn decompressed(blob: OwnedFd) -> Result<String, String> {
    let bytes = zstd::decode_all(std::fs::File::from(blob)).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

impl Engine for FakeEngine {
    fn unpack(
        &self,
        tree: &str,
        media_type: &str,
        blob: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Unpacked, EngineError> {
        if media_type == LAYER_INDEX {
            std::io::copy(&mut std::fs::File::from(blob), &mut std::io::sink()).unwrap();
            self.note("skeleton", tree)?;
            return Ok(Unpacked::default());
        }
        if let Some(out) = index {
            std::fs::File::from(out).write_all(&[0; 1024]).unwrap();
        }
        let text = if media_type == CACHE_MOUNT { decompressed(blob) } else { Ok(read_all(blob)) };
        let text = text.map_err(|message| EngineError { kind: EngineErrorKind::Image, message })?;
        self.note("unpack", &format!("{tree} {text}"))?;
        Ok(Unpacked { diff_id: id(&text), ..Unpacked::default() })
    }

    fn index(&self, _media_type: &str, blob: OwnedFd, index: OwnedFd) -> Result<Unpacked, EngineError> {
        let text = read_all(blob);
        self.note("index", &text)?;
        // A tar without entries.
        std::fs::File::from(index).write_all(&[0; 1024]).unwrap();
        Ok(Unpacked { diff_id: id(&text), ..Unpacked::default() })
    }

    fn settle(&self, layers: &[(String, Unpacked)]) -> Result<(), EngineError> {
        self.note("settle", &layers.iter().map(|(tree, _)| tree.as_str()).collect::<Vec<_>>().join(","))
    }

    fn copy_stream(&self, view: &View, to: &Destination, entries: OwnedFd) -> Result<Copied, EngineError> {
        let text = read_all(entries);
        self.note("copy_stream", &format!("{} {text} -> {}", view.upper, to.path))?;
        self.copied(view)
    }

    fn copy_tree(
        &self,
        view: &View,
        to: &Destination,
        from: &[String],
        what: &Selection,
    ) -> Result<Copied, EngineError> {
        let rest = format!("{} {} {} -> {}", view.upper, from.join(","), what.sources.join(","), to.path);
        self.note("copy_tree", &rest)?;
        self.copied(view)
    }

    fn make_directory(&self, view: &View, path: &str, owner: Owner) -> Result<(), EngineError> {
        self.note("make_directory", &format!("{} {path} {}", view.upper, owner.uid))
    }

    fn make_tree(&self, tree: &str, mode: u32, owner: Owner) -> Result<(), EngineError> {
        self.note("make_tree", &format!("{tree} {mode:o} {}:{}", owner.uid, owner.gid))
    }

    fn keeps_caches(&self) -> bool {
        self.keeps_caches
    }

    fn take_cache(&self, key: &str, tree: &str, wait: bool, _stop: &Stop) -> Result<bool, EngineError> {
        if self.keeps_caches {
            self.note("take_cache", &format!("{key} {tree} {wait}"))?;
        }
        Ok(self.keeps_caches && self.notes.all().contains(&format!("keep_cache {key}")))
    }

    fn keep_cache(&self, key: &str, _tree: &str) -> Result<bool, EngineError> {
        if self.keeps_caches {
            self.note("keep_cache", key)?;
        }
        Ok(self.keeps_caches)
    }

    fn listen(&self, name: &str, mode: u32, owner: Owner) -> Result<UnixListener, EngineError> {
        self.note("listen", &format!("{name} {mode:o} {}:{}", owner.uid, owner.gid))?;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.keep().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        self.sockets.lock().unwrap().insert(name.to_owned(), path);
        Ok(listener)
    }

    fn user(&self, _lowers: &[String], user: &str) -> Result<User, EngineError> {
        self.note("user", user)?;
        Ok(User::default())
    }

    fn owner(&self, _lowers: &[String], chown: &str) -> Result<Owner, EngineError> {
        self.note("owner", chown)?;
        Ok(Owner { uid: 7, gid: 7 })
    }

    fn run(&self, step: &Step, output: &mut dyn Output, stop: &Stop) -> Result<Exit, EngineError> {
        let command = step.argv.last().cloned().unwrap_or_default();
        self.note("run", &format!("{}+{} {command}", step.view.lowers.join(","), step.view.upper))?;
        for mount in &step.mounts {
            self.notes.add(format!("mount {} {} {:?}", mount.target, mount.read_only, mount.source));
        }
        for mount in &step.mounts {
            let MountSource::Socket { name } = &mount.source else { continue };
            let path = self.sockets.lock().unwrap().get(name).unwrap().clone();
            let mut answer = String::new();
            UnixStream::connect(&path).unwrap().read_to_string(&mut answer).unwrap();
            std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
            self.notes.add(format!("connected {answer}"));
        }
        if !step.mounts.is_empty() {
            self.notes.add(format!("env {}", step.env.join(" ")));
        }
        output.write(format!("output of {command}\n").as_bytes());
        self.meet(&command);
        if self.cancels {
            stop.stop(reason::CANCELLED);
        }
        if self.endless || self.waits.contains(&command.as_str()) {
            while !stop.is_stopped() {
                std::thread::yield_now();
            }
            return Err(EngineError { kind: EngineErrorKind::Stopped, message: "stopped".into() });
        }
        let code = self.codes.get(&command).copied().unwrap_or(0);
        Ok(Exit { code, out_of_memory: self.out_of_memory, stubs: vec!["etc/hosts".into()] })
    }

    fn diff(
        &self,
        view: &View,
        stubs: &[String],
        epoch: Option<i64>,
        out: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Diff, EngineError> {
        if let Some(out) = index {
            std::fs::File::from(out).write_all(&[0; 1024]).unwrap();
        }
        self.note("diff", &format!("{} {} {epoch:?}", view.upper, stubs.join(",")))?;
        std::fs::File::from(out).write_all(format!("layer {}", view.upper).as_bytes()).unwrap();
        Ok(Diff::default())
    }

    fn archive(&self, tree: &str, out: OwnedFd) -> Result<Diff, EngineError> {
        self.note("archive", tree)?;
        // Whoever had enough of it has closed the pipe.
        let _ = std::fs::File::from(out).write_all(self.holds.as_bytes());
        Ok(Diff { entries: 1 + u64::from(!self.holds.is_empty()), bytes: self.holds.len() as u64 })
    }

    fn remove(&self, trees: &[String]) -> Result<(), EngineError> {
        self.note("remove", &trees.join(","))
    }
}
