//! Layers that somebody only looks at: instead of the layer comes its index, from the cache or by reading the layer once
//! without writing it, and of that the part that the steps of the build look at becomes a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use kiln_contract::Descriptor;

use super::arrivals::Arrivals;
use super::bases::{Wanted, fetch};
use super::cache::lookup::Hits;
use super::cache::pull::tree as entry_tree;
use super::cache::save::Save;
use super::cache::{At, MAX_INDEX, decide, index_key, is_out};
use super::failure::{Halt, internal, of_engine};
use super::publish::{Publisher, wide_pipe};
use super::shared::Shared;

use crate::engine::{LAYER_INDEX, Unpacked};
use crate::plan::{Action, Plan};
use crate::tree::{self, Links, Look, Part};

/// Indexes on their way at a time: one that is not kept is a layer to decompress, and two cores are usual.
const AT_A_TIME: usize = 4;

/// The layers of a build that somebody only looks at, by the names of their trees.
pub(super) struct Lazy<'a> {
    layers: BTreeMap<String, Layer>,
    looks: Vec<Look>,
    /// Whether there is a cache to ask.
    cache: bool,
    publisher: &'a Publisher<'a>,
    /// The indexes, or what is wrong with the layers.
    indexes: Arrivals<String, Result<Arc<Index>, String>>,
    faults: Mutex<Faults>,
    /// Trees are made by one at a time.
    made: Mutex<Made>,
}

/// Where a layer is.
struct Layer {
    image: String,
    named: String,
    blob: Descriptor,
    diff_id: String,
    /// It is a base's: without it there is no build.
    base: bool,
}

/// An index that is here.
struct Index {
    file: File,
    links: Links,
}

/// Indexes that were not usable.
#[derive(Default)]
struct Faults {
    /// The cache does not answer.
    out: bool,
    unusable: usize,
    /// What is wrong with the first of them.
    why: Option<String>,
}

#[derive(Default)]
struct Made {
    parts: Vec<Part>,
    trees: BTreeSet<String>,
    /// Their layers can't be told from an index.
    useless: BTreeSet<String>,
}

/// What a build looks at: the images and entries that [`decide`] names, for the operations that are carried out.
pub(super) fn looks(plan: &Plan, work: &decide::Work) -> Vec<Look> {
    let mut looks = Vec::new();
    for (stage, op) in &work.run {
        let action = &plan.stages[*stage].ops[*op].action;
        match action {
            _ if decide::Need::of(action) != decide::Need::Look => {}
            Action::Copy { dest, .. } => looks.push(Look { path: dest.clone(), below: true }),
            Action::Workdir { path, .. } => looks.push(Look { path: path.clone(), below: false }),
            Action::Run { .. } => {}
        }
    }
    // Names of owners are looked up there.
    let users = ["/etc/passwd", "/etc/group"];
    looks.extend(users.map(|path| Look { path: path.to_owned(), below: false }));
    looks
}

impl<'a> Lazy<'a> {
    pub fn new(
        plan: &Plan,
        work: &decide::Work,
        hits: &Hits,
        cache: bool,
        publisher: &'a Publisher<'a>,
    ) -> Self {
        let mut layers = BTreeMap::new();
        let mut todo = Vec::new();
        for image in &work.look_images {
            let base = &plan.images[*image];
            for (place, blob) in base.resolved.layers.iter().enumerate() {
                let name = super::bases::tree(*image, place);
                let layer = Layer {
                    image: base.resolved.pinned.clone(),
                    named: format!("the base image {}", base.resolved.reference),
                    blob: blob.clone(),
                    diff_id: base.diff_ids.get(place).cloned().unwrap_or_default(),
                    base: true,
                };
                todo.push(name.clone());
                layers.insert(name, layer);
            }
        }
        for (at, hit) in work.look.iter().filter_map(|at: &At| Some((*at, hits.get(at)?))) {
            let name = entry_tree(at);
            let layer = Layer {
                image: hit.image.clone(),
                named: format!("the cache entry {}", hit.image),
                blob: hit.entry.layer.clone(),
                diff_id: hit.entry.diff_id.clone(),
                base: false,
            };
            todo.push(name.clone());
            layers.insert(name, layer);
        }
        Self {
            layers,
            looks: looks(plan, work),
            cache,
            publisher,
            indexes: Arrivals::new(todo),
            faults: Mutex::default(),
            made: Mutex::default(),
        }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to get the indexes.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<(), Halt> {
        self.indexes.start(scope, shared, ("index", AT_A_TIME), |name| self.get(shared, name))
    }

    fn get(&self, shared: &Shared<'_>, name: &str) -> Option<Result<Arc<Index>, String>> {
        let layer = self.layers.get(name)?;
        match self.obtain(shared, layer) {
            Ok(index) => Some(index.map(Arc::new)),
            Err(Halt::Failed(failure)) if !layer.base => Some(Err(failure.message)),
            Err(halt) => {
                shared.halt(halt);
                None
            }
        }
    }

    /// Whether a tree is of a layer that is only looked at.
    pub fn has(&self, tree: &str) -> bool {
        self.layers.contains_key(tree)
    }

    /// Waits until the index of a layer is here; else says what is wrong with the layer.
    pub fn wait(&self, shared: &Shared<'_>, tree: &str) -> Result<Result<(), String>, Halt> {
        Ok(self.indexes.wait(shared, &tree.to_owned())?.map(drop))
    }

    /// The inner error says why the layer can't be told from an index.
    fn obtain(&self, shared: &Shared<'_>, layer: &Layer) -> Result<Result<Index, String>, Halt> {
        if self.cache && !self.faults().out {
            match self.kept(shared, layer) {
                Ok(Some(index)) => return Ok(Ok(index)),
                Ok(None) => {}
                Err(Halt::Stopped) => return Err(Halt::Stopped),
                Err(Halt::Failed(failure)) => {
                    let mut faults = self.faults();
                    faults.out |= is_out(&failure);
                    faults.unusable += 1;
                    faults.why.get_or_insert(failure.message);
                }
            }
        }
        self.read(shared, layer)
    }

    /// The index that the cache has.
    fn kept(&self, shared: &Shared<'_>, layer: &Layer) -> Result<Option<Index>, Halt> {
        let Some(hit) = shared.courier.cache_get(&index_key(&layer.diff_id))? else { return Ok(None) };
        let (blob, entry) = (&hit.entry.layer, &hit.entry);
        let named = format!("the index {} of layer {}", hit.image, layer.diff_id);
        if blob.media_type != LAYER_INDEX || entry.diff_id != layer.diff_id || blob.size > MAX_INDEX {
            let (kind, size, of) = (&blob.media_type, blob.size, &entry.diff_id);
            let found = format!("a {kind} of {size} bytes, of layer {of}");
            let message =
                format!("{named}: expected a {LAYER_INDEX} of at most {MAX_INDEX} bytes, found {found}");
            return Err(internal(message).into());
        }
        let file = self.publisher.new_file()?;
        let out = file.try_clone().map_err(|e| internal(format!("sharing an index: {e}")))?;
        shared.courier.read_blob(&hit.image, blob, OwnedFd::from(out))?;
        let links = tree::links(&file).map_err(|e| internal(format!("{named}: {e}")))?;
        Ok(Some(Index { file, links }))
    }

    /// The index, from the layer itself.
    fn read(&self, shared: &Shared<'_>, layer: &Layer) -> Result<Result<Index, String>, Halt> {
        let Layer { image, named, blob, diff_id, .. } = layer;
        let file = self.publisher.new_file()?;
        let share = || file.try_clone().map_err(|e| internal(format!("sharing an index: {e}")));
        let out = share()?;
        let take = |read| shared.engine.index(&blob.media_type, read, out.into());
        fetch(shared, &Wanted { image, named, blob, diff_id }, take)?;
        if self.cache {
            self.publisher.save(Save::Index { diff_id: diff_id.clone(), index: share()? });
        }
        Ok(tree::links(&file).map(|links| Index { file, links }).map_err(|e| e.to_string()))
    }

    /// The trees to look at in place of `trees`, of which the others are there; nothing where it can't be done. `known`:
    /// the others bring no link that may lead into these.
    pub fn trees(
        &self,
        shared: &Shared<'_>,
        trees: &[String],
        known: bool,
    ) -> Result<Option<Vec<String>>, Halt> {
        let mut indexes = BTreeMap::new();
        for tree in trees.iter().filter(|tree| self.has(tree)) {
            match self.indexes.wait(shared, tree)? {
                Ok(index) => drop(indexes.insert(tree, index)),
                Err(_) => return Ok(None),
            }
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if indexes.keys().any(|tree| made.useless.contains(*tree)) {
            return Ok(None);
        }
        let links: Vec<&Links> = indexes.values().map(|index| &index.links).collect();
        let part = if known { tree::part(&links, &self.looks) } else { Part::All };
        let number = made.parts.iter().position(|other| *other == part).unwrap_or(made.parts.len());
        if number == made.parts.len() {
            made.parts.push(part.clone());
        }
        let name = |tree: &String| if self.has(tree) { format!("k{number}-{tree}") } else { tree.clone() };
        let names: Vec<String> = trees.iter().map(name).collect();
        let mut fresh: BTreeMap<String, Unpacked> = BTreeMap::new();
        for (tree, index) in &indexes {
            let name = name(tree);
            if made.trees.contains(&name) {
                continue;
            }
            match unpack(shared, &name, index, &part)? {
                Ok(unpacked) => drop(fresh.insert(name, unpacked)),
                Err(problem) => {
                    let mut faults = self.faults();
                    faults.unusable += 1;
                    faults.why.get_or_insert(problem);
                    made.useless.insert((*tree).clone());
                    return Ok(None);
                }
            }
        }
        if !fresh.is_empty() {
            made.trees.extend(fresh.keys().cloned());
            // What is not fresh was settled before.
            let layers: Vec<(String, Unpacked)> =
                names.iter().map(|name| (name.clone(), fresh.remove(name).unwrap_or_default())).collect();
            shared.engine.settle(&layers).map_err(|e| of_engine(&e, None))?;
        }
        Ok(Some(names))
    }

    /// What a person should know.
    pub fn warning(&self) -> Option<String> {
        let faults = self.faults();
        let why = faults.why.as_deref()?;
        Some(format!("{} layer indexes were not usable: {why}", faults.unusable))
    }
}

/// Makes the tree `name` of a part of an index. The inner error says why it can't be done.
fn unpack(
    shared: &Shared<'_>,
    name: &str,
    index: &Index,
    part: &Part,
) -> Result<Result<Unpacked, String>, Halt> {
    let (read, write) = wide_pipe()?;
    let (written, unpacked) = std::thread::scope(|s| {
        let writing =
            s.spawn(|| tree::write_part(&index.file, &index.links, part, File::from(OwnedFd::from(write))));
        let unpacked = shared.engine.unpack(name, LAYER_INDEX, read.into(), None);
        (writing.join(), unpacked)
    });
    let written = written.map_err(|_| internal("a thread that read an index panicked"))?;
    Ok(match (written, unpacked) {
        (Ok(()), Ok(unpacked)) if unpacked.links.is_empty() => Ok(unpacked),
        (Ok(()), Ok(_)) => Err("it has links into other layers".to_owned()),
        (_, Err(error)) if error.kind == crate::engine::EngineErrorKind::Space => {
            return Err(of_engine(&error, None));
        }
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.message),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::tests::plan;

    #[test]
    fn a_build_looks_at_destinations_and_where_names_are() {
        let text = "FROM a\nCOPY x /d/\nCOPY --link y /l\nWORKDIR /w\nADD z /z\nRUN r\n";
        let planned = plan(text);
        let paths: Vec<_> =
            looks(&planned, &decide::all(&planned)).into_iter().map(|look| (look.path, look.below)).collect();
        let expected = [("/d/", true), ("/w", false), ("/etc/passwd", false), ("/etc/group", false)];
        assert_eq!(paths, expected.map(|(path, below)| (path.to_owned(), below)));
    }
}
