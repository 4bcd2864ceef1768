//! Asks for entries: first for those of the final image, and then, as long as something is missing, for what would have to
//! be read to make it. A layer that the image needs is put into the output at once, so that an entry counts only when its
//! layer is really there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use kiln_contract::reason;
use kiln_contract::request::Compression;

use super::At;
use super::decide::{Work, decide};
use super::key::Keys;
use crate::courier::{Cached, CourierError};
use crate::plan::Plan;
use crate::solve::failure::{Halt, internal};
use crate::solve::log::{Entry, Log};
use crate::solve::shared::Shared;

/// Questions at a time: each is one request of some milliseconds.
const AT_A_TIME: usize = 8;
/// Warnings that are shown: a cache that is broken is broken in one way.
const SHOWN: usize = 3;

/// What the cache has.
pub(in crate::solve) type Hits = BTreeMap<At, Cached>;

/// What one round of questions shares.
struct Round<'a> {
    plan: &'a Plan,
    keys: &'a Keys,
    shared: &'a Shared<'a>,
    todo: Mutex<VecDeque<At>>,
    found: Mutex<Hits>,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    /// Operations whose entry is none.
    unusable: BTreeSet<At>,
    /// The registry does not answer, or does not let us in: it is not asked any more.
    out: bool,
    warnings: Vec<String>,
    halt: Option<Halt>,
}

/// What a look-up came to.
pub(in crate::solve) struct Found {
    /// The entries that are of use.
    pub hits: Hits,
    /// Operations whose entry is none.
    pub unusable: BTreeSet<At>,
    /// What is to be done.
    pub work: Work,
    /// Whether the cache answers: one that does not is not told anything either.
    pub answers: bool,
}

/// Looks up what is of use, and says what is to be done.
pub(in crate::solve) fn look_up(
    plan: &Plan,
    keys: &Keys,
    shared: &Shared<'_>,
    log: &mut dyn Log,
) -> Result<Found, Halt> {
    let mut asked: BTreeSet<At> = BTreeSet::new();
    let mut round = Round {
        plan,
        keys,
        shared,
        todo: Mutex::default(),
        found: Mutex::default(),
        trouble: Mutex::default(),
    };
    loop {
        let found = round.found.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Who was not asked for yet may have it: nothing is asked for that may turn out to be of no use.
        let work = decide(plan, &|at| found.contains_key(&at) || !asked.contains(&at));
        let todo: VecDeque<At> = work.wanted.difference(&asked).copied().collect();
        let out = round.trouble.get_mut().unwrap_or_else(PoisonError::into_inner).out;
        if todo.is_empty() || out {
            break;
        }
        asked.extend(&todo);
        let threads = AT_A_TIME.min(todo.len());
        *round.todo.get_mut().unwrap_or_else(PoisonError::into_inner) = todo;
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // One less is only slower.
                let _ =
                    std::thread::Builder::new().name("look-up".into()).spawn_scoped(scope, || round.ask());
            }
            round.ask();
        });
        shared.check()?;
    }
    let trouble = round.trouble.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(halt) = trouble.halt {
        return Err(halt);
    }
    for text in trouble.warnings.iter().take(SHOWN) {
        log.entry(Entry::Warning { text });
    }
    if trouble.warnings.len() > SHOWN {
        let text = format!("{} more cache entries were not usable", trouble.warnings.len() - SHOWN);
        log.entry(Entry::Warning { text: &text });
    }
    let hits = round.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let work = decide(plan, &|at| hits.contains_key(&at));
    Ok(Found { hits, unusable: trouble.unusable, work, answers: !trouble.out })
}

impl Round<'_> {
    fn ask(&self) {
        loop {
            let next = self.todo.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(at) = next else { return };
            {
                let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if trouble.out || trouble.halt.is_some() {
                    return;
                }
            }
            match self.one(at) {
                Ok(Some(hit)) => {
                    self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(at, hit);
                }
                Ok(None) => {}
                Err(error) => self.note(at, error),
            }
        }
    }

    /// One entry, with its layer in the output where the image needs it.
    fn one(&self, (stage, op): At) -> Result<Option<Cached>, CourierError> {
        let Some(key) = self.keys.of((stage, op)) else { return Ok(None) };
        let Some(hit) = self.shared.courier.cache_get(key)? else { return Ok(None) };
        let known = [Compression::Gzip, Compression::Zstd, Compression::Uncompressed];
        let layer = &hit.entry.layer;
        let problem = hit.entry.objection().or_else(|| {
            let fits = known.iter().any(|compression| compression.media_type() == layer.media_type);
            (!fits).then(|| format!("a layer of media type {:?}", layer.media_type))
        });
        if let Some(problem) = problem {
            let mut failure = internal(problem);
            reason::BASE_IMAGE_INVALID.clone_into(&mut failure.reason);
            return Err(CourierError::Failed(Box::new(failure)));
        }
        if self.plan.stages[stage].publish {
            self.shared.courier.put_base_blob(&hit.image, layer)?;
        }
        Ok(Some(hit))
    }

    fn note(&self, (stage, op): At, error: CourierError) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            CourierError::Failed(failure) => {
                if super::is_out(&failure) {
                    if !trouble.out {
                        trouble.warnings.push(format!("the cache is not used: {}", failure.message));
                    }
                    trouble.out = true;
                    return;
                }
                let step = self.plan.stages[stage].ops[op].step;
                trouble.unusable.insert((stage, op));
                trouble
                    .warnings
                    .push(format!("the cache entry of step {step} is not usable: {}", failure.message));
            }
            other => drop(trouble.halt.get_or_insert(other.into())),
        }
    }
}
