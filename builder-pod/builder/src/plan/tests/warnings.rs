//! Warnings of whole Dockerfiles, with what the plan knows.

use super::*;

fn warned(text: &str, args: &[(&str, &str)]) -> Vec<(&'static str, u32)> {
    let found = RefCell::default();
    // Warnings are there with and without a plan.
    let _ = plan_noting(text, None, args, &found);
    found.into_inner().kept.iter().map(|finding| (finding.rule.name(), finding.line)).collect()
}

#[test]
fn warnings_know_the_environment() {
    let undefined = |line| ("UndefinedVar", line);
    assert_eq!(warned("FROM conf\nENV A=$ONE B=$PATH C=$NOPE\n", &[]), [undefined(2)]);
    assert_eq!(warned("ARG G=1\nFROM a\nUSER $G\nARG G H=$H I=$NO\nUSER $G$H\n", &[]).len(), 3);
    assert_eq!(warned("FROM a\nARG I=$NO\n", &[("I", "1")]), [], "the default is not used");
    assert_eq!(warned("FROM conf\nCMD x\n", &[]), [], "the base has a SHELL");
    assert_eq!(warned("FROM a AS b\nARG X\nFROM b\nUSER $X\nCOPY secret /\n", &[]), [("CopyIgnoredFile", 5)]);
    assert_eq!(warned("FROM a AS b\nUSER $X\nFROM c\n", &[]), [], "not built");
    assert_eq!(warned("FROM a\nSTOPSIGNAL $SIGNAL\n", &[]), [undefined(2)], "it says why there is no plan");
    assert_eq!(warned("FROM a\nONBUILD USER $X\nFROM 0\n", &[]), []);
    assert_eq!(warned("FROM a AS b\nONBUILD CMD x\nFROM b\n", &[]), [("JSONArgsRecommended", 3)]);
}

#[test]
fn what_is_asked_of_the_rules() {
    let text = "# check=skip=UndefinedVar\nFROM a\nUSER $X\n";
    assert_eq!(warned(text, &[]), []);
    assert_eq!(
        warned(text, &[("BUILDKIT_DOCKERFILE_CHECK", "")]),
        [("UndefinedVar", 3)],
        "it takes its place"
    );
    let (reason, line, message) = refused("# check=skips=UndefinedVar\nFROM a\n");
    assert_eq!((reason, line), (reason::DOCKERFILE_INVALID, Some(1)));
    assert!(message.contains("skips=UndefinedVar"), "{message}");
    let error = plan_with("FROM a\n", None, &[("BUILDKIT_DOCKERFILE_CHECK", "error=maybe")]).unwrap_err();
    assert_eq!((error.reason, error.line), (reason::INVALID_SPEC, None));
}

#[test]
fn warnings_of_every_from() {
    let args = BTreeMap::from([("IMG".to_owned(), "a".to_owned())]);
    let contexts = BTreeMap::new();
    let target = Target {
        platform: "linux/amd64",
        machine: "linux/arm64",
        stage: None,
        args: &args,
        contexts: &contexts,
        entitlements: &[],
    };
    let text = "ARG IMG\nFROM --platform=$TARGETPLATFORM $IMG\nFROM --platform=$BUILDPLATFORM a\nFROM --platform=arm64 $IMGG\n";
    let file = Dockerfile::parse(text.as_bytes()).unwrap();
    let found = findings(&file, &Default::default(), target);
    let found: Vec<_> = found.kept.iter().map(|finding| (finding.rule.name(), finding.line)).collect();
    let invalid = |line| ("InvalidDefaultArgInFrom", line);
    assert_eq!(
        found,
        [invalid(2), invalid(4), ("RedundantTargetPlatform", 2), ("UndefinedArgInFrom", 4)],
        "without an image the look ends"
    );
}
