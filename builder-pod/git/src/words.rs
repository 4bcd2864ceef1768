//! What git and ssh complain of, in the classes that decide who has to act. Pure. Their words are those of LC_ALL=C.

use crate::error::{Cause, Fault, Kind};
use crate::process::Error;

/// Words and what they mean; the first that is found counts.
const TABLE: [(&str, Kind); 37] = [
    ("Host key verification failed", Kind::Unauthorized),
    ("No ED25519 host key is known", Kind::Unauthorized),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", Kind::Unauthorized),
    ("transport '", Kind::Invalid),
    ("not allowed", Kind::Invalid),
    ("Permission denied", Kind::Unauthorized),
    ("Authentication failed", Kind::Unauthorized),
    ("Authorization error", Kind::Unauthorized),
    ("could not read Username", Kind::Unauthorized),
    ("could not read Password", Kind::Unauthorized),
    ("Invalid username or", Kind::Unauthorized),
    ("returned error: 401", Kind::Unauthorized),
    ("returned error: 403", Kind::Unauthorized),
    ("error in libcrypto", Kind::Unauthorized),
    ("invalid format", Kind::Unauthorized),
    ("incorrect passphrase", Kind::Unauthorized),
    ("couldn't find remote ref", Kind::NotFound),
    ("not our ref", Kind::NotFound),
    ("does not allow request for unadvertised object", Kind::NotFound),
    ("did not contain", Kind::NotFound),
    ("unable to find current revision", Kind::NotFound),
    ("remote error: upload-pack: not our ref", Kind::NotFound),
    ("returned error: 404", Kind::NotFound),
    ("epository not found", Kind::NotFound),
    ("epository does not exist", Kind::NotFound),
    ("not found", Kind::NotFound),
    ("does not appear to be a git repository", Kind::NotFound),
    ("could not be found", Kind::NotFound),
    ("Object does not exist on the server", Kind::NotFound),
    ("SSL certificate problem", Kind::Unauthorized),
    ("server certificate verification failed", Kind::Unauthorized),
    ("fsck error", Kind::Invalid),
    ("error in tree", Kind::Invalid),
    ("error in object", Kind::Invalid),
    ("invalid path", Kind::Invalid),
    ("bad object", Kind::Invalid),
    ("No url found for submodule path", Kind::Invalid),
];

/// The fault that an error stands for.
pub(crate) fn fault(error: &Error, url: &str) -> Fault {
    let words = match error {
        Error::Failed(words) => words,
        Error::TooLarge => {
            let text = format!("git needs more than {} GiB for {url}", crate::limits::MAX_WORK >> 30);
            return Fault { cause: Some(Cause::History), ..Fault::too_large(text) };
        }
        Error::System(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Fault {
                cause: Some(Cause::NoGit),
                ..Fault::internal("the program git is not installed")
            };
        }
        Error::System(e) => return Fault::internal(format!("git could not be run: {e}")),
    };
    let kind =
        TABLE.iter().find(|(part, _)| words.contains(part)).map_or(Kind::Unavailable, |(_, kind)| *kind);
    let line = telling(words);
    let cause = match kind {
        Kind::Unauthorized if words.contains("ost key") || words.contains("IDENTIFICATION") => {
            Some(Cause::HostKey)
        }
        Kind::Unauthorized if words.contains("ertificate") => Some(Cause::Certificate),
        Kind::Unauthorized => Some(Cause::Login),
        Kind::Invalid if words.contains("transport '") => Some(Cause::Transport),
        _ => None,
    };
    let fault = Fault::new(kind, format!("git can't fetch {url}: {line}"));
    Fault { output: Some(words.clone()), cause, ..fault }
}

/// What git says after every fault of ssh.
const EMPTY: [&str; 3] = [
    "Could not read from remote repository",
    "Please make sure you have the correct",
    "and the repository exists",
];

/// The line that says most: one whose words are known, the first that git calls fatal or an error, or the first of all.
fn telling(words: &str) -> &str {
    let lines = || {
        let lines = words.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.filter(|line| !EMPTY.iter().any(|empty| line.contains(empty)))
    };
    let marked = |mark: &'static str| lines().find_map(move |line| line.strip_prefix(mark));
    let known = lines().find(|line| TABLE.iter().any(|(part, _)| line.contains(part)));
    let said = known.or_else(|| marked("fatal: ")).or_else(|| marked("error: ")).or_else(|| lines().next());
    said.map_or("it says nothing", |line| line.strip_prefix("fatal: ").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_servers() {
        for (words, kind) in [
            (
                "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
                Kind::Unauthorized,
            ),
            (
                "git@github.com: Permission denied (publickey).\r\nfatal: Could not read from remote repository.",
                Kind::Unauthorized,
            ),
            (
                "Host key verification failed.\r\nfatal: Could not read from remote repository.",
                Kind::Unauthorized,
            ),
            ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", Kind::NotFound),
            ("fatal: repository 'https://h/x/' not found", Kind::NotFound),
            ("fatal: '/x' does not appear to be a git repository", Kind::NotFound),
            ("fatal: couldn't find remote ref refs/heads/x", Kind::NotFound),
            ("fatal: remote error: upload-pack: not our ref 00", Kind::NotFound),
            ("fatal: unable to access 'https://h/': Could not resolve host: h", Kind::Unavailable),
            ("ssh: connect to host h port 22: Connection refused\r\nfatal: x", Kind::Unavailable),
            (
                "fatal: unable to access 'https://h/': The requested URL returned error: 502",
                Kind::Unavailable,
            ),
            ("fatal: transport 'file' not allowed\nfatal: clone of 'file:///x' failed", Kind::Invalid),
            (
                "error: object 0: treeNotSorted: not properly sorted\nfatal: fsck error in packed object",
                Kind::Invalid,
            ),
            ("something else", Kind::Unavailable),
        ] {
            let fault = fault(&Error::Failed(words.to_owned()), "https://h/x");
            assert_eq!(fault.kind, kind, "{words}: {fault}");
            assert!(fault.message.starts_with("git can't fetch https://h/x: "), "{fault}");
        }
        let line = telling("Cloning\nfatal: it is this\nerror: and that\n");
        assert_eq!(line, "it is this");
    }
}
