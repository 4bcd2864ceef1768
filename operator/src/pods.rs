//! What is known of builder pods: fed by a watch, and by the answers to our own calls so that a decision sees what the
//! last one did. Views of a few hundred bytes, by owner, so that ten thousand fit in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::image_build::observe::PodView;

/// The pods, by the UID of the ImageBuild that controls them.
#[derive(Debug, Default)]
pub struct Pods(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// No two of one name. There is one of most, and a map has room for eleven from the first one on.
    by_owner: HashMap<String, Vec<PodView>>,
    /// What the lists that are under way have shown so far: UIDs of pods, by the namespace that is listed (`None`: all).
    listed: HashMap<Scope, HashSet<String>>,
    /// The newest version that the watch has told of.
    seen: u64,
}

/// What a watch covers: one namespace, or all.
pub type Scope = Option<String>;

/// A resourceVersion as a number (KEP-5504: they are, and they grow); 0 for one that is none.
fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

impl Pods {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves a map that is whole: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list begins.
    pub fn list_begins(&self, scope: &Scope) {
        self.inner().listed.insert(scope.clone(), HashSet::new());
    }

    /// A list is whole: what it did not show is gone. Returns namespace and name of the owners of what is gone.
    pub fn list_ends(&self, scope: &Scope) -> Vec<(String, String)> {
        let mut inner = self.inner();
        let Some(listed) = inner.listed.remove(scope) else { return Vec::new() };
        let mut gone = Vec::new();
        for pods in inner.by_owner.values_mut() {
            pods.retain(|pod| {
                let keep = listed.contains(&pod.uid) || scope.as_ref().is_some_and(|s| *s != pod.namespace);
                if !keep {
                    gone.push((pod.namespace.clone(), pod.owner_name.clone().unwrap_or_default()));
                }
                keep
            });
        }
        inner.by_owner.retain(|_, pods| !pods.is_empty());
        gone
    }

    /// The watch shows a pod.
    pub fn show(&self, scope: &Scope, pod: PodView) {
        let mut inner = self.inner();
        inner.seen = inner.seen.max(version(&pod.resource_version));
        if let Some(listed) = inner.listed.get_mut(scope) {
            listed.insert(pod.uid.clone());
        }
        inner.insert(pod);
    }

    /// The watch says that a pod is gone.
    pub fn gone(&self, pod: &PodView) {
        let mut inner = self.inner();
        inner.seen = inner.seen.max(version(&pod.resource_version));
        inner.remove(pod);
    }

    /// An answer to a call of ours showed a pod. It counts unless the watch is already past it.
    pub fn answered(&self, pod: PodView) {
        let mut inner = self.inner();
        if version(&pod.resource_version) > inner.seen {
            inner.insert(pod);
        }
    }

    /// An answer to a call of ours said that a pod is not there.
    pub fn not_found(&self, pod: &PodView) {
        self.inner().remove(pod);
    }

    /// The pods that an ImageBuild controls, by name.
    pub fn of(&self, owner: &str) -> BTreeMap<String, PodView> {
        let inner = self.inner();
        let pods = inner.by_owner.get(owner).into_iter().flatten();
        pods.map(|pod| (pod.name.clone(), pod.clone())).collect()
    }
}

impl Inner {
    fn insert(&mut self, pod: PodView) {
        let Some(owner) = pod.owner.clone() else { return };
        let pods = self.by_owner.entry(owner).or_default();
        match pods.iter_mut().find(|known| known.name == pod.name) {
            Some(known)
                if known.uid == pod.uid
                    && version(&known.resource_version) > version(&pod.resource_version) => {}
            Some(known) => *known = pod,
            None => {
                pods.reserve_exact(1);
                pods.push(pod);
            }
        }
    }

    fn remove(&mut self, pod: &PodView) {
        let Some(owner) = &pod.owner else { return };
        if let Some(pods) = self.by_owner.get_mut(owner) {
            // Another pod may have taken its name.
            pods.retain(|known| known.name != pod.name || known.uid != pod.uid);
            if pods.is_empty() {
                self.by_owner.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, version: u64) -> PodView {
        PodView {
            name: name.into(),
            uid: uid.into(),
            resource_version: version.to_string(),
            owner: Some("o".into()),
            ..PodView::default()
        }
    }

    #[test]
    fn an_answer_is_seen_at_once_and_an_old_event_does_not_undo_it() {
        let pods = Pods::default();
        pods.show(&None, pod("a", "1", 5));
        pods.answered(PodView { terminal: true, ..pod("a", "1", 9) });
        pods.show(&None, pod("a", "1", 7));
        assert!(pods.of("o")["a"].terminal);
        pods.show(&None, pod("a", "1", 10));
        assert!(!pods.of("o")["a"].terminal);
    }

    #[test]
    fn an_answer_that_comes_after_the_pods_end_does_not_bring_it_back() {
        let pods = Pods::default();
        pods.show(&None, pod("a", "1", 5));
        pods.gone(&pod("a", "1", 8));
        pods.answered(pod("a", "1", 6));
        assert!(pods.of("o").is_empty());
        pods.answered(pod("a", "2", 9));
        pods.gone(&pod("a", "1", 8));
        assert_eq!(pods.of("o")["a"].uid, "2", "the end of one pod is not the end of its successor");
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_show() {
        let pods = Pods::default();
        pods.show(
            &None,
            PodView { owner_name: Some("app".into()), namespace: "ns".into(), ..pod("a", "1", 5) },
        );
        pods.show(&None, pod("b", "2", 5));
        pods.list_begins(&None);
        pods.show(&None, pod("b", "2", 9));
        assert_eq!(pods.list_ends(&None), [("ns".to_owned(), "app".to_owned())]);
        assert_eq!(pods.of("o").keys().collect::<Vec<_>>(), ["b"]);
        assert!(pods.list_ends(&None).is_empty());
        pods.list_begins(&Some("other".into()));
        assert!(
            pods.list_ends(&Some("other".into())).is_empty(),
            "a list of one namespace says nothing of another"
        );
    }
}
