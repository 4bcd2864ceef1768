//! What a step mounts, made ready: trees of stages, images and the context, caches that last for the build, and trees for
//! changes that are thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;

use kiln_contract::{Failure, FailureClass, reason};
use kiln_dockerfile::instruction::Sharing;

use super::MAX_SECRETS;
use super::failure::{Halt, of_engine};
use super::step::Steps;
use crate::engine::{Destination, EngineError, Mount, MountSource, Owner, Secret, Selection, View};
use crate::plan::{self, Cache, CopyFrom};

/// What the steps of a build have mounted so far.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    /// The tree of each cache. Steps run one after another, so within a build every way of sharing one is the same.
    caches: BTreeMap<Cache, String>,
    /// The tree with each path of each context; no name: of the build's own.
    context: BTreeMap<(Option<String>, String), String>,
    /// Every secret that a step got: none may appear in the log.
    pub(super) secrets: Vec<Secret>,
    trees: usize,
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
    fn tree(&mut self, kind: char) -> String {
        self.trees += 1;
        format!("{kind}{}", self.trees)
    }
}

impl Steps<'_> {
    /// Does a step's work with what it mounts.
    pub(super) fn with_mounts<T>(
        &mut self,
        mounts: &[plan::Mount],
        work: impl FnOnce(&Self, &Prepared) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        let done = self.prepare(mounts).and_then(|prepared| {
            let done = work(self, &prepared)?;
            self.release(&prepared).map(|()| done)
        });
        // A step that failed has filled its caches all the same.
        let kept = self.keep_caches();
        let done = done?;
        kept.map(|()| done)
    }

    /// Makes ready what a step mounts.
    fn prepare(&mut self, mounts: &[plan::Mount]) -> Result<Prepared, Halt> {
        let mut prepared = Prepared::default();
        // All builds wait for caches in one order, so that none waits for another in a circle.
        let locked = mounts.iter().filter_map(|mount| match mount {
            plan::Mount::Cache { cache, sharing: Sharing::Locked, .. } => Some(cache),
            _ => None,
        });
        for cache in locked.collect::<BTreeSet<_>>() {
            self.cache_tree(cache, true)?;
        }
        let mut secrets: BTreeMap<String, Secret> = BTreeMap::new();
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
                    let source = self.cache(cache, path)?;
                    prepared.mounts.push(Mount { target: target.clone(), read_only: *read_only, source });
                }
                plan::Mount::Memory { target, read_only, size } => {
                    let source = MountSource::Memory { size: *size };
                    prepared.mounts.push(Mount { target: target.clone(), read_only: *read_only, source });
                }
                plan::Mount::Secret { id, target, env, mode, owner, required } => {
                    let Some(bytes) = self.secret(id, *required, &mut secrets)? else { continue };
                    if let Some(name) = env {
                        prepared.env.push((name.clone(), text(id, &bytes)?));
                    }
                    if let Some(target) = target {
                        let source = MountSource::File { bytes, mode: *mode, owner: *owner };
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

    /// Gives back the caches that outlast the build; the others stay for the next steps.
    fn keep_caches(&mut self) -> Result<(), Halt> {
        let mut left = BTreeMap::new();
        for (cache, tree) in std::mem::take(&mut self.mounted.caches) {
            if !self.shared.engine.keep_cache(&cache.key(), &tree).map_err(|e| of_engine(&e, None))? {
                left.insert(cache, tree);
            }
        }
        self.mounted.caches = left;
        Ok(())
    }

    /// The trees that a mount shows, from the bottom up, and what people call them.
    fn files(&mut self, from: Option<CopyFrom>, path: &str) -> Result<(Vec<String>, String), Halt> {
        Ok(match from {
            None => (Vec::new(), "scratch".to_owned()),
            Some(CopyFrom::Stage(stage)) => {
                let trees = self.whole(&self.left(stage).trees)?;
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
    fn context_tree(&mut self, name: Option<&str>, path: &str) -> Result<String, Halt> {
        let key = |path: &str| (name.map(str::to_owned), path.to_owned());
        if let Some(tree) = ["/", path].iter().find_map(|path| self.mounted.context.get(&key(path))) {
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
        self.mounted.context.insert(key(path), tree.clone());
        Ok(tree)
    }

    /// Takes a secret for a step, each once; `taken` are those that it has.
    fn secret(
        &mut self,
        id: &str,
        required: bool,
        taken: &mut BTreeMap<String, Secret>,
    ) -> Result<Option<Secret>, Halt> {
        if let Some(known) = taken.get(id) {
            return Ok(Some(known.clone()));
        }
        let Some(secret) = self.shared.courier.secret(id)? else {
            if !required {
                return Ok(None);
            }
            let text = format!(
                "the secret {id} is required and was not given; add it to spec.secrets, or pass it to `kiln build` with --secret id={id},src=FILE"
            );
            return Err(Failure::new(FailureClass::User, reason::NOT_FOUND, text).into());
        };
        if taken.values().map(|known| known.0.len()).sum::<usize>() + secret.0.len() > MAX_SECRETS {
            let text = format!(
                "the secrets of the step have together more than the {MAX_SECRETS} bytes that are allowed"
            );
            return Err(Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text).into());
        }
        if !self.mounted.secrets.contains(&secret) {
            self.mounted.secrets.push(secret.clone());
        }
        taken.insert(id.to_owned(), secret.clone());
        Ok(Some(secret))
    }

    /// The tree of a cache; `wait` where another build has it.
    fn cache_tree(&mut self, cache: &Cache, wait: bool) -> Result<String, Halt> {
        if let Some(tree) = self.mounted.caches.get(cache) {
            return Ok(tree.clone());
        }
        let tree = self.mounted.tree('k');
        let engine = self.shared.engine;
        // What lies over files of the build is of no use to another one.
        let taken = cache.from.is_none() && {
            let taken = engine.take_cache(&cache.key(), &tree, wait, self.shared.stop);
            taken.map_err(|e| of_engine(&e, None))?
        };
        // Noted before anything can go wrong, so that it is given back.
        self.mounted.caches.insert(cache.clone(), tree.clone());
        if let Some((mode, uid, gid)) = cache.root.filter(|_| !taken) {
            engine.make_tree(&tree, mode, Owner { uid, gid }).map_err(|e| of_engine(&e, None))?;
        }
        Ok(tree)
    }

    fn cache(&mut self, cache: &Cache, path: &str) -> Result<MountSource, Halt> {
        // A wished owner or mode means a fresh directory, also in BuildKit.
        let from = if cache.root.is_none() { cache.from } else { None };
        let (lowers, _) = self.files(from, path)?;
        let name = format!("the cache {}", cache.id.trim_start_matches('/'));
        let tree = self.cache_tree(cache, false)?;
        Ok(MountSource::Trees { lowers, upper: Some(tree), path: path.to_owned(), name })
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
