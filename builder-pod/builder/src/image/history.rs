//! The history: one entry per instruction that counts, in step with the layers.

use serde_json::{Value, json};

/// Who made an entry.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// Who made an entry for a layer of the base that its history does not tell of.
const MISSING_COMMENT: &str = "buildkit.exporter.image.v0";

/// An entry that an instruction adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The step that it comes from.
    pub step: u32,
    /// What was done.
    pub created_by: String,
    /// Nothing but metadata changed.
    pub empty_layer: bool,
}

impl Entry {
    pub(super) fn to_json(&self, created: &str) -> Value {
        let mut out = json!({"created": created, "created_by": self.created_by, "comment": COMMENT});
        if self.empty_layer {
            out["empty_layer"] = json!(true);
        }
        out
    }
}

/// A base's history brought in step with its layers: missing entries are added, and a history that tells of more layers
/// than there are is dropped, as is one that is no list of objects.
pub(super) fn of_base(history: Vec<Value>, layers: usize) -> Vec<Value> {
    let told = |entries: &[Value]| {
        entries.iter().filter(|e| e.get("empty_layer").and_then(Value::as_bool) != Some(true)).count()
    };
    let sound = history.iter().all(Value::is_object) && told(&history) <= layers;
    let mut out = if sound { history } else { Vec::new() };
    let missing = layers - told(&out);
    out.extend(std::iter::repeat_n(json!({"comment": MISSING_COMMENT}), missing));
    out
}
