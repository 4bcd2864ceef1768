//! `status`: what the operator says. Only it writes here; everything is bounded (typical 8 KiB, never over 64 KiB).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildStatus {
    /// `metadata.generation` that this status speaks of; -1 until the operator has seen the object.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled` and `Succeeded`, one of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of the latest run, from 1. A run is one answer to one input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// When the latest run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the latest run ended, well or not; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How long the latest run took, as a Go duration; absent while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Steps that are done, of all, in the latest run (`3/4`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Every step of the Dockerfile in the latest run, in order; at most 200.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepStatus>,
    /// What the latest run warns of in the Dockerfile; absent when it warns of nothing. A line `# check=skip=RULE,RULE` at
    /// the top of the Dockerfile, or above an instruction, turns rules off; `# check=error=true` has warnings fail the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<WarningsStatus>,
    /// Why the latest run ended badly; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureStatus>,
    /// The image of the last run that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageStatus>,
    /// What the latest run is built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// Since when the ConfigMap or Flux object that `spec.source` names has been waited for; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_missing_since: Option<Time>,
    /// Digest of all that decides on the image, with a version prefix (`v1:` and 64 hex digits). A run starts when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<String>,
    /// How the steps of the latest run are kept apart from the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Where the image of the latest run goes: `spec.output.image`, or what the policies' template makes of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The policies that the latest run began under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyStatus>,
    /// The pod of the latest attempt: `kubectl logs` shows its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_ref: Option<PodRef>,
    /// The attempts of the latest run, in order; more than one after infrastructure faults only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptStatus>,
    /// The last 5 runs that ended, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
    /// Where the build waits; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// Value of the annotation `kiln.build/rebuild` that the latest run answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_rebuild: Option<String>,
}

/// A step of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Number of the step, from 1.
    pub index: i32,
    /// Name or number of its stage.
    pub stage: String,
    /// Line of the Dockerfile, from 1.
    pub line: i32,
    /// The instruction's text, at most 160 bytes.
    pub instruction: String,
    /// What the step is doing.
    pub state: StepState,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Exit code of the command of a failed step; 128+N for signal N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why the step cache had no result of it, at most 120 bytes: which of its inputs changed since the last build, or which
    /// step before it was missing, too. Absent where the result was taken, for steps that change no files, and without
    /// `spec.cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_miss: Option<String>,
    /// The layer that it made; absent for steps that change no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerStatus>,
}

/// What a step is doing. `Skipped`: the build ended before it began, or was done. `Unknown`: the journal was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Running.
    Running,
    /// Taken from a cache.
    Cached,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// The build ended before it began, or before it was done when another step failed.
    Skipped,
    /// Not known: the journal was lost.
    Unknown,
}

/// Warnings of a run: what BuildKit's lint rules find in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarningsStatus {
    /// How many there are in all.
    pub count: i32,
    /// The first 20, by line.
    #[serde(default)]
    pub items: Vec<WarningStatus>,
}

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarningStatus {
    /// BuildKit's name of the rule (`FromAsCasing`).
    pub rule: String,
    /// Line of the Dockerfile, from 1.
    pub line: i32,
    /// What was found, at most 200 bytes.
    pub message: String,
}

/// A layer of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LayerStatus {
    /// Digest of the compressed layer.
    pub digest: String,
    /// Bytes, compressed.
    pub size: i64,
}

/// Who has to act: `User` (Dockerfile), `Source`, `Registry`, `Policy` (cluster settings, admission), `Infrastructure` and
/// `Evicted` (tried again), `OutOfMemory`, `Timeout`, `Cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FailureClass {
    /// The Dockerfile or one of its commands: its author.
    User,
    /// The source is missing or breaks a rule.
    Source,
    /// A registry refused or did not answer.
    Registry,
    /// The cluster's settings or admission forbid it.
    Policy,
    /// Node, kubelet, pod or API fault; tried again.
    Infrastructure,
    /// The memory limit was hit.
    OutOfMemory,
    /// The pod was evicted; tried again.
    Evicted,
    /// `spec.timeout` passed.
    Timeout,
    /// Somebody asked for it.
    Cancelled,
}

/// Why a run ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// Who has to act.
    pub class: FailureClass,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// What was expected, what was found, and the command to try next. At most 1.5 KiB.
    pub message: String,
    /// Path of the Dockerfile, where a line is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<i32>,
    /// Number of the step, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Exit code of its command; 128+N for signal N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of the step's output, at most 2 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
    /// Whether another attempt may end otherwise without anybody acting.
    pub retryable: bool,
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// Its reference with tag.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of config and layers together, as stored (compressed).
    pub size: i64,
    /// Its platforms (`linux/amd64`).
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// What a run is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// What was built: the commit of a git repository, the revision that Flux names, else the digest. Absent while it is not
    /// known, and for files in the object or a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Digest (`sha256:` and 64 hex digits) of the source's files, names and contents; of the archive; or of the manifest.
    /// Absent for git, whose commit says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A pod of this namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Its UID; absent until it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// One pod's try at a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStatus {
    /// Number of the attempt in its run, from 1.
    pub number: i32,
    /// Name of its pod.
    pub pod_name: String,
    /// UID of its pod; absent until it was created.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "podUID")]
    pub pod_uid: Option<String>,
    /// When it began.
    pub started_at: Time,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the pod was told to stop; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_requested_at: Option<Time>,
    /// Why it was told to stop: `Cancelled`, `Suspended`, `Superseded` or `TimedOut`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// How it ended, in one word: `Succeeded`, or the failure's reason; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who has to act, when it ended badly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// More about it, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunResult {
    /// The tags name its image.
    Succeeded,
    /// It ended badly.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It was stopped because the object was suspended.
    Suspended,
    /// It was stopped because a newer input or a rebuild took its place.
    Superseded,
}

/// A run that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Its number.
    pub run: i64,
    /// How it ended.
    pub result: RunResult,
    /// Why, in one word (`ImagePushed`, `StepFailed`).
    pub reason: String,
    /// Digest of the image that it pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How many attempts it took; 0 when it ended before a pod was made.
    pub attempts: i32,
    /// When it began.
    pub start_time: Time,
    /// When it ended.
    pub completion_time: Time,
}

/// What a run began under.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The BuildPolicies that select the namespace, at most 16 of them, the one whose defaults win first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Digest of all that they, the operator's settings and the namespace's Pod Security level say. A build that was refused is
    /// looked at again when it changes; others are not.
    pub digest: String,
}

/// Where a build waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Its place in the queue, from 1, rounded up (1 to 5, 10, 20, 50, 100, ...) so that the object is not written for every
    /// move; 0 where the wait is not for a place.
    pub position: i32,
    /// What it waits for: a place among the builds that run in all (`Total`), in its namespace (`Namespace`) or in the
    /// namespaces that a BuildPolicy selects (`Policy`), or the namespace's ResourceQuota (`Quota`).
    pub reason: String,
}
