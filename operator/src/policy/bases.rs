//! The image that the build's last stage stands on, against the policies, where the Dockerfile is at hand: its author learns of it
//! without waiting for a pod. All other images, and those of a Dockerfile that is fetched, are the courier's to refuse. Pure.

use std::cell::Cell;
use std::collections::BTreeMap;

use kiln_api::reference::Reference;
use kiln_contract::Failure;
use kiln_contract::policy::{self, AllowList};
use kiln_dockerfile::{Dockerfile, Expander, Stage};

/// Why the image under the stage `target` (the last one when absent) may not be used, at its line of `path`. `None` also where
/// that is not known here.
pub fn refusal(
    file: &Dockerfile,
    path: &str,
    target: Option<&str>,
    args: &BTreeMap<String, String>,
    lists: &[AllowList],
) -> Option<Failure> {
    let (reference, line) = under(file, target, args)?;
    let name = Reference::parse(reference.split('@').next().unwrap_or_default()).ok()?;
    let repository = format!("{}/{}", name.registry, name.repository);
    let refused = policy::base_image_refusal(lists, &reference, &repository)?;
    Some(refused.at(path, line))
}

/// The image and the line of its FROM.
fn under(file: &Dockerfile, target: Option<&str>, args: &BTreeMap<String, String>) -> Option<(String, u32)> {
    let globals = globals(file, args)?;
    let mut index = match target {
        None => file.stages.len().checked_sub(1)?,
        Some(target) => {
            let lower = target.to_ascii_lowercase();
            let named = file.stages.iter().rposition(|s| s.name.as_deref() == Some(&*lower));
            named.or_else(|| target.parse().ok().filter(|n| *n < file.stages.len()))?
        }
    };
    loop {
        let stage: &Stage = file.stages.get(index)?;
        let base = expand(&stage.base, &globals, file.escape)?;
        match file.stages[..index].iter().rposition(|s| s.name.as_deref() == Some(&*base)) {
            Some(earlier) => index = earlier,
            None if base == "scratch" => return None,
            None => return Some((base, stage.lines.first)),
        }
    }
}

/// The arguments before the first FROM, as far as they are needed: `None` when one depends on what only the build knows.
fn globals(file: &Dockerfile, args: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    let mut globals = BTreeMap::new();
    for arg in file.meta_args.iter().flat_map(|meta| &meta.args) {
        let value = match (args.get(&arg.key), &arg.value) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => expand(default, &globals, file.escape)?,
            (None, None) => continue,
        };
        globals.insert(arg.key.clone(), value);
    }
    Some(globals)
}

/// `None` where a variable has no value here: it may be one of the platform's.
fn expand(word: &str, globals: &BTreeMap<String, String>, escape: char) -> Option<String> {
    let unknown = Cell::new(false);
    let get = |name: &str| {
        let value = globals.get(name).cloned();
        unknown.set(unknown.get() || value.is_none());
        value
    };
    Expander::new(&get, escape).word(word).ok().filter(|_| !unknown.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str, target: Option<&str>, args: &[(&str, &str)]) -> Option<String> {
        let file = Dockerfile::parse(text.as_bytes()).expect("it parses");
        let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let lists = [AllowList { by: "BuildPolicy p: f".into(), repositories: vec!["r.x/ok/*".into()] }];
        refusal(&file, "Dockerfile", target, &args, &lists).map(|failure| failure.to_string())
    }

    #[test]
    fn the_image_under_the_target_is_refused_at_its_line() {
        let said = look("# c\nFROM alpine:3\nRUN x", None, &[]).expect("refused");
        assert_eq!(
            said,
            "Dockerfile:2: the base image alpine:3: BuildPolicy p: f allows r.x/ok/*, found docker.io/library/alpine; use a base image of such a repository, or ask the platform team to allow it"
        );
        for (text, target, args, line) in [
            ("FROM r.x/ok/a\nFROM r.x/no/a", None, vec![], Some(2)),
            ("FROM r.x/ok/a AS a\nFROM r.x/no/a", Some("A"), vec![], None),
            ("FROM r.x/ok/a\nFROM r.x/no/a", Some("0"), vec![], None),
            ("FROM r.x/no/a AS a\nRUN x\nFROM a AS b\nFROM b", None, vec![], Some(1)),
            ("ARG V=no\nFROM r.x/$V/a", None, vec![], Some(2)),
            ("ARG V=no\nFROM r.x/$V/a", None, vec![("V", "ok")], None),
            ("ARG V=ok\nARG W=$V/a\nFROM r.x/${W}@sha256:00", None, vec![], None),
            ("FROM scratch\nCOPY a b", None, vec![], None),
            // Nobody but the build knows.
            ("FROM r.x/$TARGETARCH/a", None, vec![], None),
            ("FROM r.x/no/a\nFROM scratch", Some("x"), vec![], None),
        ] {
            let said = look(text, target, &args);
            let found = said.as_ref().map(|s| s.split(':').nth(1).and_then(|l| l.parse().ok()));
            assert_eq!(found.flatten(), line, "{text}: {said:?}");
        }
    }
}
