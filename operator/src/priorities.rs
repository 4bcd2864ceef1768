//! What PriorityClasses are worth, which orders the builds of a namespace that wait.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use futures::StreamExt as _;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};

/// The value of each PriorityClass.
#[derive(Debug, Default)]
pub struct Priorities(RwLock<Values>);

#[derive(Debug, Default)]
struct Values {
    /// By name: the value, and whether pods have it that name none.
    known: HashMap<String, (i32, bool)>,
    /// Those that a list has shown which is not whole yet.
    listed: HashMap<String, (i32, bool)>,
}

impl Priorities {
    /// The value of a class; without a name, that of the cluster's default. 0 where there is none, as for pods.
    pub fn of(&self, class: Option<&str>) -> i32 {
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let value = match class {
            Some(name) => values.known.get(name),
            // Should there be two for a moment, pods get the lower one.
            None => values.known.values().filter(|(_, default)| *default).min(),
        };
        value.map_or(0, |(value, _)| *value)
    }

    fn take_in(&self, event: watcher::Event<PriorityClass>) {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let row = |class: &PriorityClass| {
            (class.name_any(), (class.value, class.global_default.unwrap_or_default()))
        };
        match event {
            watcher::Event::Init => values.listed.clear(),
            watcher::Event::InitApply(class) => values.listed.extend([row(&class)]),
            watcher::Event::InitDone => values.known = std::mem::take(&mut values.listed),
            watcher::Event::Apply(class) => values.known.extend([row(&class)]),
            watcher::Event::Delete(class) => {
                values.known.remove(&class.name_any());
            }
        }
    }

    /// Keeps the values up to date. Never ends. Without the right to see PriorityClasses all builds are worth the same.
    pub async fn watch(&self, client: Client) {
        let classes: Api<PriorityClass> = Api::all(client);
        let mut events = std::pin::pin!(watcher(classes, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take_in(event),
                Err(error) => {
                    tracing::warn!(%error, "the watch of PriorityClasses was interrupted and is taken up again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: i32, default: bool) -> PriorityClass {
        let mut class = PriorityClass { value, global_default: Some(default), ..PriorityClass::default() };
        class.metadata.name = Some(name.to_owned());
        class
    }

    #[test]
    fn builds_are_worth_what_their_pods_are() {
        let priorities = Priorities::default();
        assert_eq!((priorities.of(Some("high")), priorities.of(None)), (0, 0));
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(class("high", 100, false)),
            watcher::Event::InitApply(class("usual", 5, true)),
            watcher::Event::InitDone,
        ] {
            priorities.take_in(event);
        }
        let all = [Some("high"), Some("usual"), Some("nobody-made-it"), None];
        assert_eq!(all.map(|name| priorities.of(name)), [100, 5, 0, 5]);
        priorities.take_in(watcher::Event::Delete(class("usual", 5, true)));
        priorities.take_in(watcher::Event::Apply(class("high", 200, false)));
        assert_eq!(all.map(|name| priorities.of(name)), [200, 0, 0, 0]);
        // A list that is not whole takes nothing away.
        priorities.take_in(watcher::Event::Init);
        assert_eq!(priorities.of(Some("high")), 200);
        priorities.take_in(watcher::Event::InitDone);
        assert_eq!(priorities.of(Some("high")), 0);
    }
}
