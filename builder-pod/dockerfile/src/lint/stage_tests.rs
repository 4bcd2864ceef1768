//! Tests of the look at a stage.

use super::*;
use crate::Dockerfile;

/// Findings of the only stage; ENV and ARG set what they say, as written.
fn found_with(text: &str, ignore: Option<&str>, shell: bool) -> Vec<Findings> {
    let file = Dockerfile::parse(text.as_bytes()).unwrap();
    let ignore = ignore.map(|text| IgnoreFile::parse(text).unwrap());
    let check = Check::default();
    let (mut env, mut args) = (vec![("PATH".to_owned(), "/bin".to_owned())], Vec::new());
    let mut all = Vec::new();
    let mut lint = StageLint::default();
    for stage in &file.stages {
        lint = lint.child();
        for instruction in &stage.instructions {
            let before = (env.clone(), args.clone());
            let get = |name: &str| before.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            let known = Known {
                check: &check,
                escape: '\\',
                get: &get,
                names: &|| before.0.iter().map(|(name, _)| name.clone()).collect(),
                declared: &|name| before.1.iter().any(|arg| arg == name),
                shell,
                ignore: ignore.as_ref(),
            };
            lint.instruction(instruction, known);
            match &instruction.kind {
                InstructionKind::Env(pairs) => {
                    env.extend(pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())));
                }
                InstructionKind::Arg(list) => {
                    for arg in list {
                        lint.argument(instruction, arg, arg.key == "GIVEN", known);
                        args.push(arg.key.clone());
                    }
                }
                _ => {}
            }
        }
        all.push(lint.take_findings());
    }
    all
}

fn names(findings: &Findings) -> Vec<(&'static str, u32)> {
    findings.kept.iter().map(|f| (f.rule.name(), f.line)).collect()
}

fn found(text: &str) -> Vec<(&'static str, u32)> {
    names(&found_with(text, None, false)[0])
}

#[test]
fn variables() {
    let undefined = |line| ("UndefinedVar", line);
    assert_eq!(
        found(
            "FROM a\nARG A B=$PATH GIVEN=$NO C=$NO\nENV E=$A$B F=$E-$NO\nUSER ${NO:-x}:$NO\nLABEL $NO=1\nVOLUME $NO $E\n"
        ),
        [undefined(2), undefined(3), undefined(3), undefined(4), undefined(5), undefined(6)],
        "E of the same ENV is not set yet"
    );
    assert_eq!(found("FROM a\nCOPY --chown=$U:$U a$V $W\nRUN echo $X\nEXPOSE $Y\n").len(), 3);
    assert_eq!(found("FROM a\nRUN --mount=type=cache,target=$T true\n"), [undefined(2)]);
    assert_eq!(found("FROM a\nCOPY <<A <<'B' /\n$X '$Y'\nA\n$Z\nB\n"), [undefined(2), undefined(2)]);
    let near = &found_with("FROM a\nENV HOME_DIR=1\nWORKDIR /$HOMEDIR\n", None, false)[0].kept[0];
    assert_eq!(near.message, "$HOMEDIR is neither declared nor set; did you mean $HOME_DIR?");
    let checked = "FROM a\n# check=skip=UndefinedVar // set by the base\nENV A=$B\nENV C=$D\n";
    assert_eq!(found(checked), [undefined(4)]);
}

#[test]
fn secrets() {
    let secret = |line| ("SecretsUsedInArgOrEnv", line);
    assert_eq!(
        found(
            "FROM a\nARG SSH_PRIVATE_KEY\nENV token=1\nENV KEY_FILE=1 PUBLIC_KEY=1 KEYS=1 MONKEY=1\nARG Auth_x\n"
        ),
        [secret(2), secret(3), secret(5)]
    );
}

#[test]
fn what_comes_twice_and_shell_form() {
    let (json, twice) = ("JSONArgsRecommended", "MultipleInstructionsDisallowed");
    assert_eq!(
        found("FROM a\nCMD x\nCMD [\"y\"]\nENTRYPOINT z\nHEALTHCHECK NONE\nHEALTHCHECK CMD q\n"),
        [(json, 2), (twice, 2), (json, 4), (twice, 5)]
    );
    assert_eq!(names(&found_with("FROM a\nCMD x\n", None, true)[0]), []);
    assert_eq!(names(&found_with("FROM a AS b\nCMD x\nFROM b\nCMD [\"y\"]\n", None, true)[1]), []);
}

#[test]
fn working_directories() {
    let relative = |line| ("WorkdirRelativePath", line);
    assert_eq!(found("FROM a\nWORKDIR b\nWORKDIR c\n"), [relative(2)]);
    assert_eq!(found("FROM a\nWORKDIR /b\nWORKDIR c\n"), []);
    let all = found_with("FROM a AS b\nWORKDIR /x\nFROM b\nWORKDIR y\n", None, false);
    assert_eq!(names(&all[1]), []);
}

#[test]
fn old_pairs_and_ports() {
    let old = |line| ("LegacyKeyValueFormat", line);
    assert_eq!(found("FROM a\nENV b c\nLABEL d e\nENV f=g\n"), [old(2), old(3)]);
    assert_eq!(
        found("FROM a\nEXPOSE 80/TCP 127.0.0.1:1:2 8080:80 [::1]::81 82 x/icmp 90:90\n"),
        [
            ("ExposeInvalidFormat", 2),
            ("ExposeProtoCasing", 2),
            ("ExposeInvalidFormat", 2),
            ("ExposeInvalidFormat", 2),
            ("ExposeInvalidFormat", 2),
        ],
        "in the order of the words, up to the one that is none"
    );
}

#[test]
fn what_the_ignore_file_leaves_out() {
    let left = |text: &str, ignore| names(&found_with(text, Some(ignore), false)[0]);
    let hit = [("CopyIgnoredFile", 2)];
    assert_eq!(left("FROM a\nCOPY x/y.log z /\n", "*.md\nx\n"), hit);
    assert_eq!(left("FROM a\nADD ./a.md /\n", "*.md\n"), hit);
    assert_eq!(left("FROM a\nCOPY . /\n", "**\n"), hit);
    assert_eq!(left("FROM a\nCOPY . /\n", "?\n"), []);
    assert_eq!(left("FROM a\nCOPY --from=b a.md /\nADD https://x/a.md /\n", "*.md\nhttps*\n"), []);
    assert_eq!(left("FROM a\nCOPY a.md /\n", "*.md\n!b.md\n"), [], "who knows what is brought back");
}
