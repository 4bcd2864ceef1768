//! git over https.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kiln_contract::request::Source;
use kiln_source::Secrets;
use kiln_source::error::Kind;
use sha2::{Digest as _, Sha256};

use crate::web::{Answer, Authority, git_backend, repository, serve};
use crate::{Fetch, git, refused};

/// `Basic u:p`.
const LOGIN: &str = "Basic dTpw";
const APP: &str = "echo one > a; mkdir d; echo run > d/run; chmod 755 d/run; ln -s a link
    git add . && git commit -qm 1 && git tag -am t v1
    echo two > a; git commit -qam 2; git branch side
    echo three > a; printf '* filter=evil\n' > .gitattributes; git add . && git commit -qm 3";

/// Serves the repositories below `root`: `/private/…` wants a login, and there is an LFS object.
fn server(authority: &Authority, root: &Path, object: &[u8]) -> String {
    let (root, object) = (root.to_owned(), object.to_vec());
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own = address.clone();
    let handler = move |request: &crate::web::Request| {
        if request.path.starts_with("/private/")
            && request.headers.get("authorization").is_none_or(|a| a != LOGIN)
        {
            let mut answer = Answer::new(401, "text/plain", "no");
            answer.headers.push(("WWW-Authenticate".into(), "Basic realm=\"x\"".into()));
            return answer;
        }
        if request.path.ends_with("/info/lfs/objects/batch") {
            let oid = hex::encode(Sha256::digest(&object));
            let href = format!("{}/private/object", own.get().expect("known"));
            let body = format!(
                r#"{{"transfer":"basic","objects":[{{"oid":"{oid}","size":{},"authenticated":true,"actions":{{"download":{{"href":"{href}","header":{{"Authorization":"{LOGIN}"}}}}}}}}]}}"#,
                object.len()
            );
            return Answer::new(200, "application/vnd.git-lfs+json", body);
        }
        match request.path.as_str() {
            "/private/object" => Answer::new(200, "application/octet-stream", object.clone()),
            _ => git_backend(&root, request),
        }
    };
    let started = serve(Some(authority), Arc::new(handler));
    address.set(started.clone()).expect("once");
    started
}

fn head(root: &Path, name: &str, revision: &str) -> String {
    let out = Command::new("git")
        .args([
            "-c",
            "safe.directory=*",
            "-C",
            root.join(name).to_str().expect("text"),
            "rev-parse",
            revision,
        ])
        .output()
        .expect("git");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

#[test]
fn branches_tags_and_commits_come_without_git_s_own_files() {
    let (authority, root) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    repository(&root.path().join("app.git"), APP);
    let url = format!("{}/app.git", server(&authority, root.path(), b""));
    let trusted = Secrets::of(&[("ca.crt", &authority.pem())]).expect("fine");
    let fetch = Fetch::new();
    let commit = |revision: &str| head(root.path(), "app.git", revision);

    let found = fetch.run(&git(&url, |_| {}), &trusted).expect("fetched");
    assert_eq!((found.revision, found.digest), (commit("main"), None));
    assert_eq!((fetch.read("a"), fetch.read("link")), ("three\n".into(), "three\n".into()));
    assert!(!fetch.tree().join(".git").exists());
    let run = std::fs::metadata(fetch.tree().join("d/run")).expect("there");
    assert_eq!((run.mode() & 0o7777, run.mtime()), (0o755, 1_700_000_000));

    for (reference, revision, text) in [
        ("v1", "v1^{commit}", "one\n"),
        ("side", "side", "two\n"),
        ("refs/heads/main", "main", "three\n"),
        ("refs/tags/v1", "v1^{commit}", "one\n"),
    ] {
        let found =
            fetch.run(&git(&url, |g| g.reference = Some(reference.into())), &trusted).expect(reference);
        assert_eq!((found.revision, fetch.read("a").as_str()), (commit(revision), text), "{reference}");
    }
    let first = commit("v1^{commit}");
    for depth in [0, 1, 3] {
        let source = git(&url, |g| (g.commit, g.depth) = (Some(first.clone()), depth));
        assert_eq!(fetch.run(&source, &trusted).expect("fetched").revision, first);
    }
    assert_eq!(fetch.read("a"), "one\n");

    refused(
        fetch.run(&git(&url, |g| g.reference = Some("none".into())), &trusted),
        Kind::NotFound,
        "no branch, tag or",
    );
    let unknown = git(&url, |g| g.commit = Some("0a".repeat(20)));
    refused(fetch.run(&unknown, &trusted), Kind::NotFound, "no commit");
    let missing = url.replace("app.git", "none.git");
    refused(fetch.run(&git(&missing, |_| {}), &trusted), Kind::NotFound, "not found");
    refused(fetch.run(&git(&url, |_| {}), &Secrets::default()), Kind::Unauthorized, "ca.crt");
    for bad in ["ext::sh -c 'touch /tmp/x'", "--upload-pack=touch", "file:///etc", "/etc"] {
        refused(fetch.run(&git(bad, |_| {}), &trusted), Kind::Invalid, "spec.source.git");
    }
}

#[test]
fn credentials_open_what_is_private() {
    let (authority, root) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    repository(&root.path().join("private/app.git"), APP);
    let url = format!("{}/private/app.git", server(&authority, root.path(), b""));
    let with = |password: &str| {
        Secrets::of(&[("username", "u"), ("password", password), ("ca.crt", &authority.pem())]).expect("fine")
    };
    let fetch = Fetch::new();
    fetch.run(&git(&url, |_| {}), &with("p\n")).expect("fetched");
    assert_eq!(fetch.read("a"), "three\n");
    refused(fetch.run(&git(&url, |_| {}), &with("wrong")), Kind::Unauthorized, "does not open it");
    let none = Secrets::of(&[("ca.crt", &authority.pem())]).expect("fine");
    refused(fetch.run(&git(&url, |_| {}), &none), Kind::Unauthorized, "it is private, or not there");
}

#[test]
fn submodules_are_fetched_over_the_network_and_in_no_other_way() {
    let (authority, root) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let address = server(&authority, root.path(), b"");
    repository(&root.path().join("private/inner.git"), "echo inner > i; git add . && git commit -qm 1");
    let inner = head(root.path(), "private/inner.git", "main");
    let outer = |name: &str, url: &str| {
        let script = format!(
            "git update-index --add --cacheinfo 160000,{inner},sub
            printf '[submodule \"sub\"]\\n\\tpath = sub\\n\\turl = {url}\\n' > .gitmodules
            git add .gitmodules && git commit -qm 1"
        );
        repository(&root.path().join(name), &script);
        git(&format!("{address}/{name}"), |g| g.submodules = true)
    };
    let secrets =
        Secrets::of(&[("username", "u"), ("password", "p"), ("ca.crt", &authority.pem())]).expect("fine");
    let fetch = Fetch::new();
    for (name, url) in [
        ("private/relative.git", "../inner.git".to_owned()),
        ("private/absolute.git", format!("{address}/private/inner.git")),
    ] {
        fetch.run(&outer(name, &url), &secrets).expect(name);
        assert_eq!(fetch.read("sub/i"), "inner\n", "{name}");
        assert!(!fetch.tree().join("sub/.git").exists());
    }
    let mut without = outer("private/without.git", "../inner.git");
    if let Source::Git(git) = &mut without {
        git.submodules = false;
    }
    fetch.run(&without, &secrets).expect("fetched");
    assert!(!fetch.tree().join("sub/i").exists());

    let local = root.path().join("private/inner.git");
    let file = format!("file://{}", local.display());
    refused(fetch.run(&outer("private/file.git", &file), &secrets), Kind::Invalid, "https and ssh only");
    let path = outer("private/path.git", local.to_str().expect("text"));
    refused(fetch.run(&path, &secrets), Kind::Invalid, "https and ssh only");
    let mark = root.path().join("mark");
    let ext = format!("ext::sh -c touch%% {}", mark.display());
    assert!(fetch.run(&outer("private/ext.git", &ext), &secrets).is_err());
    assert!(!mark.exists(), "a submodule's URL ran a command");
}

#[test]
fn large_files_are_fetched_where_that_is_asked_for() {
    let (authority, root) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let object = b"a large file\n";
    let oid = hex::encode(Sha256::digest(object));
    let script = format!(
        "printf '*.bin filter=lfs diff=lfs merge=lfs -text\\n' > .gitattributes
        printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:{oid}\\nsize {}\\n' > x.bin
        git add . && git commit -qm 1",
        object.len()
    );
    repository(&root.path().join("private/lfs.git"), &script);
    let url = format!("{}/private/lfs.git", server(&authority, root.path(), object));
    let secrets =
        Secrets::of(&[("username", "u"), ("password", "p"), ("ca.crt", &authority.pem())]).expect("fine");
    let fetch = Fetch::new();
    fetch.run(&git(&url, |_| {}), &secrets).expect("fetched");
    assert!(fetch.read("x.bin").starts_with("version https://git-lfs"));
    fetch.run(&git(&url, |g| g.lfs = true), &secrets).expect("fetched");
    assert_eq!(fetch.read("x.bin").as_bytes(), object);
}
