//! ADD of git repositories: by a process of this one, and by the program of the container `git` over its socket.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::source::Git;
use kiln_git::{Place, added};

use crate::web::{git_backend, repository, serve};

const APP: &str = "mkdir -p d/e; echo one > d/e/a; echo run > run; chmod 700 run; ln -s d/e/a link
    git add . && git commit -qm 1 && git tag both && git branch old
    echo two > d/e/a; git commit -qam 2; git branch both";

/// The container's program, and where it listens.
pub(crate) struct Container {
    child: Child,
    dir: tempfile::TempDir,
}

impl Container {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let work = dir.path().join("work");
        for made in [&socket, &work] {
            std::fs::create_dir(made).expect("made");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-source"));
        command.arg("--serve-git").arg("--git-socket").arg(socket.join("git.sock"));
        let child = command.arg("--git-work").arg(work).spawn().expect("kiln-source");
        Self { child, dir }
    }

    pub(crate) fn place(&self) -> Place {
        Place::Container(self.dir.path().join("socket/git.sock"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an entry is: text of a file with its mode and time, or where a link leads.
type Entries = BTreeMap<PathBuf, (String, u32, u64)>;

fn fetch(place: &Place, source: &Git) -> Result<(String, Entries), Failure> {
    let mut file = tempfile::tempfile().expect("a file");
    let commit = added::fetch(
        place,
        source,
        &kiln_contract::policy::Network::default(),
        file.try_clone().expect("a descriptor"),
    )?;
    file.rewind().expect("a regular file");
    let mut found = Entries::new();
    for entry in tar::Archive::new(file).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").into_owned();
        let (mode, time) = (entry.header().mode().expect("a mode"), entry.header().mtime().expect("a time"));
        let text = match entry.link_name().expect("a name") {
            Some(to) => format!("-> {}", to.display()),
            None => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("bytes");
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        found.insert(path, (text, mode, time));
    }
    Ok((commit, found))
}

fn names(entries: &Entries) -> Vec<&str> {
    entries.keys().filter_map(|path| path.to_str()).collect()
}

fn text<'a>(entries: &'a Entries, name: &str) -> &'a str {
    &entries[Path::new(name)].0
}

fn server(root: &Path) -> String {
    let root = root.to_owned();
    serve(None, Arc::new(move |request: &crate::web::Request| git_backend(&root, request)))
}

fn head(repository: &Path, revision: &str) -> String {
    let words = ["-c", "safe.directory=*", "-C", repository.to_str().expect("text"), "rev-parse", revision];
    let out = Command::new("git").args(words).output().expect("git");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

#[test]
fn what_add_names_comes_as_it_asks_here_and_from_the_container() {
    let root = tempfile::tempdir().expect("a directory");
    let app = repository(&root.path().join("app.git"), APP);
    let url = format!("{}/app.git", server(root.path()));
    let source = |change: fn(&mut Git)| {
        let mut git = Git { url: url.clone(), depth: 1, submodules: true, ..Git::default() };
        change(&mut git);
        git
    };
    let container = Container::start();
    for place in [Place::Here, container.place()] {
        let (commit, all) = fetch(&place, &source(|_| {})).expect("fetched");
        assert_eq!(commit, head(&app, "main"), "{place:?}");
        assert_eq!(names(&all), ["d", "d/e", "d/e/a", "link", "run"]);
        let run = all[Path::new("run")].clone();
        assert_eq!((run.1, run.2, text(&all, "link")), (0o755, 1_700_000_000, "-> d/e/a"));

        let (_, now) = fetch(&place, &source(|g| g.checkout_time = true)).expect("fetched");
        assert!(now[Path::new("run")].2 > 1_750_000_000, "the time of the checkout");

        // A branch is meant before a tag of its name.
        for (reference, expected) in [("old", "one\n"), ("both", "two\n"), ("refs/tags/both", "one\n")] {
            let mut named = source(|_| {});
            named.reference = Some(reference.into());
            assert_eq!(text(&fetch(&place, &named).expect(reference).1, "d/e/a"), expected, "{reference}");
        }
        let mut pinned = source(|g| g.subdir = Some("d/e".into()));
        pinned.commit = Some(head(&app, "old"));
        pinned.checksum = Some(head(&app, "old")[..12].into());
        let (commit, part) = fetch(&place, &pinned).expect("fetched");
        assert_eq!((commit, names(&part), text(&part, "a")), (head(&app, "old"), vec!["a"], "one\n"));

        let (_, kept) = fetch(&place, &source(|g| g.keep_git_dir = true)).expect("fetched");
        assert_eq!(text(&kept, ".git/HEAD").trim(), head(&app, "main"));
        assert!(
            text(&kept, ".git/config").contains(&url) && !names(&kept).iter().any(|n| n.contains("kiln"))
        );

        for (change, words) in [
            ((|g| g.reference = Some("none".into())) as fn(&mut Git), "no branch, tag or reference none"),
            (|g| g.subdir = Some("none".into()), "no directory none"),
            (|g| g.subdir = Some("../..".into()), "no directory"),
            (|g| g.checksum = Some("0a0a".into()), "expected 0a0a"),
            (|g| g.url = g.url.replace("app", "none"), "not found"),
            (|g| g.url = "ext::sh -c 'touch /tmp/x'".into(), "expected a URL"),
        ] {
            let failure = fetch(&place, &source(change)).expect_err(words);
            let found = (failure.class, failure.reason.as_str());
            assert_eq!(found, (FailureClass::User, reason::DOWNLOAD_FAILED), "{failure}");
            assert!(failure.message.contains(words), "{words}: {failure}");
        }
    }
    let ssh = source(|g| g.url = "git@127.0.0.1:a/b.git".into());
    let failure = fetch(&container.place(), &ssh).expect_err("no key is there");
    assert_eq!(failure.reason, reason::NOT_SUPPORTED, "{failure}");
    let left = std::fs::read_dir(container.dir.path().join("work")).expect("there").count();
    assert_eq!(left, 0, "a fetch leaves nothing behind");
}

#[test]
fn submodules_come_and_local_ones_do_not() {
    let root = tempfile::tempdir().expect("a directory");
    let inner = repository(&root.path().join("inner.git"), "echo inner > i; git add . && git commit -qm 1");
    let outer = |name: &str, url: &str| {
        let script = format!(
            "git update-index --add --cacheinfo 160000,{},sub
            printf '[submodule \"sub\"]\n\tpath = sub\n\turl = {url}\n' > .gitmodules
            git add .gitmodules && git commit -qm 1",
            head(&inner, "main")
        );
        repository(&root.path().join(name), &script);
    };
    let address = server(root.path());
    outer("outer.git", "../inner.git");
    outer("local.git", inner.to_str().expect("text"));
    let source = |name: &str, submodules| Git {
        url: format!("{address}/{name}"),
        depth: 1,
        submodules,
        ..Git::default()
    };
    let container = Container::start();
    for place in [Place::Here, container.place()] {
        let (_, all) = fetch(&place, &source("outer.git", true)).expect("fetched");
        assert_eq!((text(&all, "sub/i"), all.contains_key(Path::new("sub/.git"))), ("inner\n", false));
        let (_, without) = fetch(&place, &source("outer.git", false)).expect("fetched");
        assert!(!without.contains_key(Path::new("sub/i")));
        let failure = fetch(&place, &source("local.git", true)).expect_err("a path of the machine");
        assert!(failure.message.contains("https and ssh only"), "{failure}");
    }
}

#[test]
fn a_container_that_is_killed_is_a_fault_of_the_infrastructure_and_term_ends_it() {
    let mut container = Container::start();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/x.git", silent.local_addr().expect("an address"));
    let place = container.place();
    let waiting = std::thread::spawn(move || {
        fetch(&place, &Git { url, depth: 1, ..Git::default() }).expect_err("nobody answers")
    });
    // git is there, and waits for an answer.
    let held = silent.accept().expect("a connection");
    let pid =
        i32::try_from(container.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(container.child.wait().expect("ended").code(), Some(143));
    let failure = waiting.join().expect("no panic");
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::Infrastructure, reason::INTERNAL));
    drop(held);
}
