//! An API server in memory: objects with UIDs, generations and resourceVersions, conflicts, preconditions, garbage
//! collection, and the history of changes that watches and lists are served from.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

/// The kinds that the operator deals with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Build,
    Pod,
    Map,
    Account,
}

/// An object's place: kind, namespace, name.
pub type Key = (Kind, String, String);

/// Who changes something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Actor {
    /// Somebody with kubectl.
    #[default]
    User,
    /// A kubelet, the scheduler, the garbage collector.
    Cluster,
    /// An operator, by number.
    Operator(usize),
}

/// A change, in the order in which they happened; its place in the history plus one is its resourceVersion.
#[derive(Debug, Clone)]
pub struct Change {
    pub key: Key,
    pub by: Actor,
    /// How long the history was when it was asked for, where an operator did.
    pub sent: usize,
    /// When, in seconds.
    pub at: i64,
    /// What it is now; `None` when it is gone.
    pub now: Option<Arc<Value>>,
    /// What it was; `None` when it is new.
    pub before: Option<Arc<Value>>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// A status code and the body with it.
pub type Answer = (u16, Value);

/// The API server.
#[derive(Debug, Default)]
pub struct Api {
    objects: BTreeMap<Key, Arc<Value>>,
    pub history: Vec<Change>,
    uids: u64,
    /// How long the history was when the request that is carried out was sent.
    pub sent: usize,
    /// Who is at work.
    pub actor: Actor,
    /// Its time, in seconds since the epoch.
    pub now: i64,
}

/// A refusal with that reason.
pub fn refused(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (code, status)
}

/// A refusal of that status code, as an overloaded or broken API server answers.
pub fn fault(code: u16) -> Answer {
    refused(code, "InternalError", "simulated fault")
}

/// Seconds as the API writes times.
pub fn time(seconds: i64) -> Value {
    json!(jiff::Timestamp::from_second(seconds).expect("a time").to_string())
}

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

impl Api {
    /// An empty one, at that time.
    pub fn new(now: i64) -> Self {
        Self { now, ..Self::default() }
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// All objects of a kind.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter().filter(move |(key, _)| key.0 == kind)
    }

    /// The objects of a kind as they were after so many changes.
    pub fn at(&self, kind: Kind, changes: usize) -> BTreeMap<Key, Arc<Value>> {
        let mut all = BTreeMap::new();
        for change in self.history.iter().take(changes).filter(|c| c.key.0 == kind) {
            match &change.now {
                Some(object) => all.insert(change.key.clone(), object.clone()),
                None => all.remove(&change.key),
            };
        }
        all
    }

    fn store(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        object["metadata"]["resourceVersion"] = json!((self.history.len() + 1).to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        let (by, at, sent) = (self.actor, self.now, self.sent);
        self.history.push(Change { key, by, at, sent, now: Some(object.clone()), before });
        object
    }

    pub fn create(&mut self, key: Key, mut object: Value) -> Answer {
        if self.objects.contains_key(&key) {
            return refused(409, "AlreadyExists", &format!("{} already exists", key.2));
        }
        self.uids += 1;
        let meta = &mut object["metadata"];
        meta["uid"] = json!(format!("uid{}", self.uids));
        meta["name"] = json!(key.2);
        meta["namespace"] = json!(key.1);
        meta["creationTimestamp"] = time(self.now);
        meta["generation"] = json!(1);
        match key.0 {
            // As the CRD defaults it.
            Kind::Build => object["status"] = json!({"observedGeneration": -1}),
            Kind::Pod => object["status"] = json!({"phase": "Pending"}),
            _ => {}
        }
        (201, (*self.store(key, object)).clone())
    }

    /// Changes an object; nothing happens when nothing differs. A changed spec of an ImageBuild counts as a generation.
    pub fn change(&mut self, key: &Key, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        let before = self.objects.get(key)?.clone();
        let mut after = (*before).clone();
        change(&mut after);
        if after == *before {
            return Some(before);
        }
        if key.0 == Kind::Build && after["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
            after["metadata"]["generation"] = json!(generation + 1);
        }
        Some(self.store(key.clone(), after))
    }

    /// Takes an object away at once, and what it controls with it.
    pub fn remove(&mut self, key: &Key) {
        let Some(before) = self.objects.remove(key) else { return };
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = json!((self.history.len() + 1).to_string());
        let (by, at, sent) = (self.actor, self.now, self.sent);
        let before = Some(Arc::new(last));
        self.history.push(Change { key: key.clone(), by, at, sent, now: None, before });
    }

    /// The garbage collector: what belongs to an object that is gone is deleted.
    pub fn collect(&mut self) {
        let uids: Vec<String> = self.all(Kind::Build).map(|(_, b)| uid(b)).collect();
        let orphans: Vec<Key> = self
            .objects
            .iter()
            .filter(|(key, object)| {
                matches!(key.0, Kind::Pod | Kind::Map)
                    && owner(object).is_some_and(|o| !uids.contains(&o))
                    && object["metadata"]["deletionTimestamp"].is_null()
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in orphans {
            self.delete(&key);
        }
    }

    /// Deletes as the API server does: a pod that a kubelet has goes when that says so.
    pub fn delete(&mut self, key: &Key) {
        let Some(object) = self.objects.get(key) else { return };
        let has_kubelet =
            key.0 == Kind::Pod && object["spec"]["nodeName"].is_string() && !is_terminal(object);
        if has_kubelet {
            let by = time(self.now + 60);
            self.change(key, |pod| {
                if pod["metadata"]["deletionTimestamp"].is_null() {
                    pod["metadata"]["deletionTimestamp"] = by;
                }
            });
        } else {
            self.remove(key);
        }
    }

    /// Answers a request.
    pub fn handle(&mut self, call: &Call) -> Answer {
        let parts: Vec<&str> = call.path.trim_matches('/').split('/').collect();
        let (kind, rest) = match parts.as_slice() {
            ["api", "v1", "namespaces", namespace, "pods", rest @ ..] => ((Kind::Pod, *namespace), rest),
            ["api", "v1", "namespaces", namespace, "configmaps", rest @ ..] => {
                ((Kind::Map, *namespace), rest)
            }
            ["api", "v1", "namespaces", namespace, "serviceaccounts", rest @ ..] => {
                ((Kind::Account, *namespace), rest)
            }
            ["apis", "kiln.build", "v1alpha1", "namespaces", namespace, "imagebuilds", rest @ ..] => {
                ((Kind::Build, *namespace), rest)
            }
            ["apis", "events.k8s.io", ..] if call.method == "GET" => {
                return (
                    200,
                    json!({"kind": "EventList", "apiVersion": "events.k8s.io/v1", "metadata": {}, "items": []}),
                );
            }
            ["apis", "events.k8s.io", ..] => return (201, call.body.clone()),
            _ => panic!("the simulator does not know {} {}", call.method, call.path),
        };
        let name = rest.first().copied().or(call.body["metadata"]["name"].as_str()).unwrap_or_default();
        let key: Key = (kind.0, kind.1.to_owned(), name.to_owned());
        if call.method == super::gate::DRY_RUN {
            return match self.objects.get(&key) {
                Some(_) => refused(409, "AlreadyExists", &format!("{} already exists", key.2)),
                None => (201, call.body.clone()),
            };
        }
        if call.method == "POST" {
            return self.create(key, call.body.clone());
        }
        let Some(stored) = self.objects.get(&key).cloned() else {
            return refused(404, "NotFound", &format!("{name} not found"));
        };
        match (call.method.as_str(), rest.get(1).copied()) {
            ("GET", None) => (200, (*stored).clone()),
            ("DELETE", None) => {
                if let Some(refusal) = unmet(&call.body["preconditions"], &stored) {
                    return refusal;
                }
                self.delete(&key);
                (200, (*stored).clone())
            }
            ("PATCH", None) => self.patch(&key, &stored, &call.body),
            ("PUT", Some("status")) => self.put_status(&key, &stored, &call.body),
            (method, part) => panic!("the simulator does not know {method} {part:?} of {}", call.path),
        }
    }

    fn patch(&mut self, key: &Key, stored: &Value, body: &Value) -> Answer {
        if let Some(refusal) = unmet(&body["metadata"], stored) {
            return refusal;
        }
        let changed = self.change(key, |object| {
            let version = object["metadata"]["resourceVersion"].clone();
            merge(object, body);
            object["metadata"]["resourceVersion"] = version;
        });
        (200, changed.map(|o| (*o).clone()).unwrap_or_default())
    }

    /// Only the status counts of what is sent.
    fn put_status(&mut self, key: &Key, stored: &Value, body: &Value) -> Answer {
        if let Some(refusal) = unmet(&body["metadata"], stored) {
            return refusal;
        }
        let changed = self.change(key, |object| {
            object["status"] = body["status"].clone();
            if object["status"]["observedGeneration"].is_null() {
                object["status"]["observedGeneration"] = json!(-1);
            }
        });
        (200, changed.map(|o| (*o).clone()).unwrap_or_default())
    }
}

/// Refuses what names another UID or resourceVersion than the stored object has.
fn unmet(wanted: &Value, stored: &Value) -> Option<Answer> {
    let differs = |field: &&str| wanted[*field].is_string() && wanted[*field] != stored["metadata"][*field];
    let field = ["uid", "resourceVersion"].into_iter().find(differs)?;
    Some(refused(409, "Conflict", &format!("the {field} in the precondition differs")))
}

pub fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// UID of the controller of an object.
pub fn owner(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|o| o["controller"] == true)?["uid"].as_str().map(ToOwned::to_owned)
}

pub fn is_terminal(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The environment variable that the simulated webhook gives the builder.
const INJECTED: &str = "INJECTED";

/// What an admission webhook does to a pod that it does not know better than to change.
pub fn inject(pod: &mut Value) {
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["env"] = json!([{"name": INJECTED, "value": "yes"}]);
    }
}

/// Whether the webhook has changed that pod.
pub fn is_changed(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array();
    containers.into_iter().flatten().any(|c| c["env"][0]["name"] == INJECTED)
}
