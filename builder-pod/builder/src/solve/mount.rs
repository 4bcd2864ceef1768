//! What a step mounts, made ready: trees of stages, images and the context, caches that last for the build, and trees for
//! changes that are thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_contract::{Failure, FailureClass, reason};
use kiln_dockerfile::instruction::Sharing;

use super::MAX_SECRETS;
use super::cache::mounts::{Left, Mounts, Saved, amount};
use super::caches::{Caches, Held, way};
use super::failure::{Halt, of_engine};
use super::log::{Entry, Log as _};
use super::secrets::Secrets;
use super::stage::Lane;
use super::step::Steps;
use crate::engine::{Destination, EngineError, Mount, MountSource, Owner, Secret, Selection, View};
use crate::plan::{self, Cache, CopyFrom};

/// What the steps of a build have mounted so far.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    caches: Caches,
    /// Where what they hold outlasts the build in a registry.
    pub(super) saved: Option<Mounts>,
    /// The tree with each path of each context; no name: of the build's own.
    context: Mutex<BTreeMap<(Option<String>, String), String>>,
    pub(super) secrets: Secrets,
    trees: AtomicUsize,
}

/// What a step needs.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// For the engine.
    pub mounts: Vec<Mount>,
    /// Secret variables.
    env: Vec<(String, String)>,
    /// The ssh agents' names, and where the step connects to them.
    pub agents: Vec<(String, UnixListener)>,
    /// Trees and sockets that are of no use when the step has ended.
    discard: Vec<String>,
}

/// What a step has and others wait for.
#[derive(Debug, Default)]
struct Taken {
    caches: Vec<Held>,
    secrets: BTreeMap<String, Secret>,
    /// Bytes of them.
    bytes: usize,
}

impl Taken {
    fn has(&self, cache: &Cache) -> Option<&Held> {
        self.caches.iter().find(|held| held.cache == *cache)
    }
}

impl Prepared {
    /// Sets the variables that hold secrets.
    pub fn set(&self, env: &mut Vec<String>) {
        for (name, value) in &self.env {
            env.retain(|pair| pair.split_once('=').is_none_or(|(known, _)| known != name));
            env.push(format!("{name}={value}"));
        }
    }
}

impl Mounted {
    pub fn new(saved: Option<Mounts>) -> Self {
        Self { saved, ..Self::default() }
    }

    /// Caches that may outlast the build.
    pub fn left(&self) -> Vec<Left> {
        self.caches.left().into_iter().filter(|left| left.cache.from.is_none()).collect()
    }

    fn tree(&self, kind: char) -> String {
        format!("{kind}{}", self.trees.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Steps<'_> {
    /// Does a step's work with what it mounts.
    pub(super) fn with_mounts<T>(
        &self,
        mounts: &[plan::Mount],
        lane: &mut Lane<'_, '_>,
        work: impl FnOnce(&mut Lane<'_, '_>, &Prepared) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        let mut taken = Taken::default();
        let done = self.take(mounts, lane, &mut taken).and_then(|()| self.prepare(mounts, &taken)).and_then(
            |prepared| {
                let done = work(lane, &prepared)?;
                self.release(&prepared).map(|()| done)
            },
        );
        // A step that failed has filled its caches all the same.
        let kept = self.give_back(&taken);
        let done = done?;
        kept.map(|()| done)
    }

    /// Takes what others may have: secrets before caches, and caches in one order, so that no step and no build waits for
    /// another in a circle.
    fn take(&self, mounts: &[plan::Mount], lane: &mut Lane<'_, '_>, taken: &mut Taken) -> Result<(), Halt> {
        self.take_secrets(mounts, lane, taken)?;
        let caches = mounts.iter().filter_map(|mount| match mount {
            plan::Mount::Cache { cache, sharing, .. } => Some((cache, way(cache, *sharing))),
            _ => None,
        });
        let locked = caches.clone().filter(|(_, sharing)| *sharing == Sharing::Locked);
        for cache in locked.map(|(cache, _)| cache).collect::<BTreeSet<_>>() {
            self.take_cache(cache, Sharing::Locked, lane, taken)?;
        }
        for (cache, sharing) in caches {
            if taken.has(cache).is_none() {
                self.take_cache(cache, sharing, lane, taken)?;
            }
        }
        Ok(())
    }

    fn take_cache(
        &self,
        cache: &Cache,
        sharing: Sharing,
        lane: &mut Lane<'_, '_>,
        taken: &mut Taken,
    ) -> Result<(), Halt> {
        let (caches, engine, name) = (&self.mounted.caches, self.shared.engine, || self.mounted.tree('k'));
        let held = match caches.take(cache, sharing, &name) {
            Some(held) => held,
            None => self.pause(lane, || caches.wait(self.shared, cache, sharing, &name))?,
        };
        // Noted before anything can go wrong, so that it is given back.
        taken.caches.push(held.clone());
        if !held.make {
            return Ok(());
        }
        // What lies over files of the build is of no use to another one, and is made with them.
        if cache.from.is_none() || cache.root.is_some() {
            let take = |wait| {
                let taken = engine.take_cache(&cache.key(), &held.tree, wait, self.shared.stop);
                taken.map_err(|e| of_engine(&e, None))
            };
            let lasting = held.lasting && cache.from.is_none();
            let found = match (lasting, sharing) {
                (false, _) => false,
                (true, Sharing::Locked) => self.pause(lane, || take(true))?,
                (true, _) => take(false)?,
            };
            if !(found || lasting && self.restore_cache(cache, &held.tree, lane)?) {
                let (mode, uid, gid) = cache.root.unwrap_or((0o755, 0, 0));
                let made = engine.make_tree(&held.tree, mode, Owner { uid, gid });
                made.map_err(|e| of_engine(&e, None))?;
            }
        }
        caches.made(&held);
        Ok(())
    }

    /// Makes what an earlier build has saved of a cache the new tree `tree`; `false`, and no tree, where there is nothing.
    fn restore_cache(&self, cache: &Cache, tree: &str, lane: &mut Lane<'_, '_>) -> Result<bool, Halt> {
        let Some(mounts) = &self.mounted.saved else { return Ok(false) };
        let id = cache.name();
        Ok(match self.pause(lane, || mounts.restore(self.shared, cache, tree))? {
            Saved::Nothing => false,
            Saved::Taken(size) => {
                let text = format!("Cache mount {id}: {} from the cache", amount(size));
                lane.log.entry(Entry::Note { text: &text });
                true
            }
            Saved::Unusable(why) => {
                let text = format!("the cache mount {id} begins empty: {why}");
                lane.log.entry(Entry::Warning { text: &text });
                false
            }
        })
    }

    /// Gives back the caches that outlast the build; the others stay for the next steps.
    fn give_back(&self, taken: &Taken) -> Result<(), Halt> {
        if taken.bytes > 0 {
            self.mounted.secrets.give_back(taken.bytes);
        }
        let mut done = Ok(());
        for held in &taken.caches {
            let kept = self.mounted.caches.give_back(held, || {
                let lasting = held.cache.from.is_none();
                let engine = self.shared.engine;
                let kept = if lasting { engine.keep_cache(&held.cache.key(), &held.tree) } else { Ok(false) };
                kept.map_err(|e| of_engine(&e, None))
            });
            done = done.and(kept);
        }
        done
    }

    /// Makes ready what a step mounts.
    fn prepare(&self, mounts: &[plan::Mount], taken: &Taken) -> Result<Prepared, Halt> {
        let mut prepared = Prepared::default();
        for mount in mounts {
            match mount {
                plan::Mount::Files { target, read_only, from, path } => {
                    let (lowers, name) = self.files(*from, path)?;
                    let upper = (!read_only).then(|| self.mounted.tree('m'));
                    prepared.discard.extend(upper.clone());
                    let source = MountSource::Trees { lowers, upper, path: path.clone(), name };
                    prepared.mounts.push(Mount { target: target.clone(), read_only: *read_only, source });
                }
                plan::Mount::Cache { target, read_only, cache, path, sharing: _ } => {
                    let source = self.cache(cache, path, taken)?;
                    prepared.mounts.push(Mount { target: target.clone(), read_only: *read_only, source });
                }
                plan::Mount::Memory { target, read_only, size } => {
                    let source = MountSource::Memory { size: *size };
                    prepared.mounts.push(Mount { target: target.clone(), read_only: *read_only, source });
                }
                plan::Mount::Secret { id, target, env, mode, owner, required: _ } => {
                    let Some(bytes) = taken.secrets.get(id) else { continue };
                    if let Some(name) = env {
                        prepared.env.push((name.clone(), text(id, bytes)?));
                    }
                    if let Some(target) = target {
                        let source = MountSource::File { bytes: bytes.clone(), mode: *mode, owner: *owner };
                        prepared.mounts.push(Mount { target: target.clone(), read_only: true, source });
                    }
                }
                plan::Mount::Agent { id, target, mode, owner, required } => {
                    if !self.shared.courier.find_agent(id)? {
                        if *required {
                            return Err(no_agent(id));
                        }
                        continue;
                    }
                    let name = self.mounted.tree('a');
                    let listener = self.shared.engine.listen(&name, *mode, *owner);
                    prepared.agents.push((id.clone(), listener.map_err(|e| of_engine(&e, None))?));
                    prepared.discard.push(name.clone());
                    let source = MountSource::Socket { name };
                    prepared.mounts.push(Mount { target: target.clone(), read_only: false, source });
                }
            }
        }
        Ok(prepared)
    }

    /// The step has ended.
    fn release(&self, prepared: &Prepared) -> Result<(), Halt> {
        if prepared.discard.is_empty() {
            return Ok(());
        }
        self.shared.engine.remove(&prepared.discard).map_err(|e| of_engine(&e, None))
    }

    /// The trees that a mount shows, from the bottom up, and what people call them.
    fn files(&self, from: Option<CopyFrom>, path: &str) -> Result<(Vec<String>, String), Halt> {
        Ok(match from {
            None => (Vec::new(), "scratch".to_owned()),
            Some(CopyFrom::Stage(stage)) => {
                let trees = self.whole(&self.stages.left(stage).trees)?;
                (trees, format!("stage {}", self.plan.stages[stage].name))
            }
            Some(CopyFrom::Image(image)) => {
                let trees = self.bases.trees(self.shared, image)?;
                (trees, format!("image {}", self.plan.images[image].resolved.reference))
            }
            Some(CopyFrom::Context) => (vec![self.context_tree(None, path)?], "the build context".to_owned()),
            Some(CopyFrom::Named(context)) => {
                let name = self.plan.contexts.get(context).cloned().unwrap_or_default();
                (vec![self.context_tree(Some(&name), path)?], format!("the context {name}"))
            }
        })
    }

    /// A tree with a path of a context at its place; only that is copied.
    fn context_tree(&self, name: Option<&str>, path: &str) -> Result<String, Halt> {
        let key = |path: &str| (name.map(str::to_owned), path.to_owned());
        // Who wants the same files at the same time waits for them.
        let mut context = self.mounted.context.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = ["/", path].iter().find_map(|path| context.get(&key(path))) {
            return Ok(tree.clone());
        }
        let tree = self.mounted.tree('x');
        let view = View { lowers: Vec::new(), upper: tree.clone() };
        let what = whole(path);
        let to = Destination {
            path: path.to_owned(),
            sources: 1,
            owner: None,
            mode: None,
            unpack: false,
            link: false,
        };
        self.copy_context(&view, &to, name, &what).map_err(|error| missing(&error))?;
        context.insert(key(path), tree.clone());
        Ok(tree)
    }

    /// Takes the secrets of a step, each once.
    fn take_secrets(
        &self,
        mounts: &[plan::Mount],
        lane: &mut Lane<'_, '_>,
        taken: &mut Taken,
    ) -> Result<(), Halt> {
        let secrets = &self.mounted.secrets;
        let wanted = mounts.iter().filter_map(|mount| match mount {
            plan::Mount::Secret { id, required, .. } => Some((id, *required)),
            _ => None,
        });
        if wanted.clone().next().is_none() {
            return Ok(());
        }
        if !secrets.try_begin() {
            self.pause(lane, || secrets.begin(self.shared))?;
        }
        let mut bytes = 0;
        for (id, required) in wanted {
            if taken.secrets.contains_key(id) {
                continue;
            }
            if !secrets.has_room(bytes) {
                self.pause(lane, || secrets.wait_for_room(self.shared, bytes))?;
            }
            let Some(secret) = self.secret(id, required)? else { continue };
            bytes += secret.0.len();
            if bytes > MAX_SECRETS {
                let text = format!(
                    "the secrets of the step have together more than the {MAX_SECRETS} bytes that are allowed"
                );
                return Err(Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text).into());
            }
            secrets.hide(&secret);
            taken.secrets.insert(id.clone(), secret);
        }
        secrets.taken(bytes);
        taken.bytes = bytes;
        Ok(())
    }

    fn secret(&self, id: &str, required: bool) -> Result<Option<Secret>, Halt> {
        let secret = self.shared.courier.secret(id)?;
        if secret.is_none() && required {
            let text = format!(
                "the secret {id} is required and was not given; add it to spec.secrets, or pass it to `kiln build` with --secret id={id},src=FILE"
            );
            return Err(Failure::new(FailureClass::User, reason::NOT_FOUND, text).into());
        }
        Ok(secret)
    }

    fn cache(&self, cache: &Cache, path: &str, taken: &Taken) -> Result<MountSource, Halt> {
        // A wished owner or mode means a fresh directory, also in BuildKit.
        let from = if cache.root.is_none() { cache.from } else { None };
        let (lowers, _) = self.files(from, path)?;
        let name = format!("the cache {}", cache.id.trim_start_matches('/'));
        let upper = taken.has(cache).map(|held| held.tree.clone());
        Ok(MountSource::Trees { lowers, upper, path: path.to_owned(), name })
    }
}

fn no_agent(id: &str) -> Halt {
    let text = format!(
        "the ssh agent {id} is required and was not given; add it to spec.ssh, or pass it to `kiln build` with --ssh {id}"
    );
    Failure::new(FailureClass::User, reason::NOT_FOUND, text).into()
}

/// A secret as the value of a variable.
fn text(id: &str, secret: &Secret) -> Result<String, Halt> {
    let text = String::from_utf8(secret.0.clone()).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| {
        let text = format!("the secret {id} is no text and can't be a variable; mount it as a file");
        Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text).into()
    })
}

/// What a mount takes of a context: a path (absolute) with all that is below it.
pub(super) fn whole(path: &str) -> Selection {
    let source = if path == "/" { ".".to_owned() } else { literal(path.trim_start_matches('/')) };
    Selection { sources: vec![source], excludes: Vec::new(), parents: false }
}

/// A path as a pattern that matches just it.
fn literal(path: &str) -> String {
    let part = |part: &str| {
        if !part.contains(['*', '?', '[']) {
            return part.to_owned();
        }
        let mut out = String::new();
        for letter in part.chars() {
            match letter {
                '*' | '?' | '[' => out.push_str(&format!("[{letter}]")),
                '\\' => out.push_str("\\\\"),
                other => out.push(other),
            }
        }
        out
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// What the context lacks is not found, rather than a failed command.
fn missing(error: &EngineError) -> Halt {
    of_engine(error, None).map(|mut failure| {
        if failure.class == FailureClass::User {
            failure.reason = reason::NOT_FOUND.to_owned();
        }
        failure
    })
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn paths_match_themselves() {
        assert_eq!(literal("a/b.c"), "a/b.c");
        assert_eq!(literal("a\\b/arr[0]*?.txt"), "a\\b/arr[[]0][*][?].txt");
    }
}
