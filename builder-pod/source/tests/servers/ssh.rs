//! git over ssh, by a real sshd on a port of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use kiln_source::Secrets;
use kiln_source::error::Kind;

use crate::web::repository;
use crate::{Fetch, git, refused};

struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.expect("ssh-keygen").success());
}

impl Sshd {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["host", "user", "stranger"] {
            key(&path(name));
        }
        // As root sshd wants its empty directory.
        let _ = std::fs::create_dir_all("/run/sshd");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\nPidFile none\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            dir.path().display()
        );
        std::fs::write(path("config"), config).expect("written");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(path("config")).stderr(Stdio::null());
        let child = command.spawn().expect("sshd: install openssh-server");
        let sshd = Self { child, dir, port };
        let listens = (0..500).any(|_| {
            let up = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            if !up {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            up
        });
        assert!(listens, "sshd does not listen");
        sshd
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect(name)
    }

    fn known_hosts(&self, host_key: &str) -> String {
        let public = self.file(&format!("{host_key}.pub"));
        let mut words = public.split_whitespace();
        format!(
            "[127.0.0.1]:{} {} {}",
            self.port,
            words.next().expect("a type"),
            words.next().expect("a key")
        )
    }
}

#[test]
fn a_private_repository_over_ssh() {
    let sshd = Sshd::start();
    let root = tempfile::tempdir().expect("a directory");
    let path = repository(&root.path().join("app.git"), "echo hello > a; git add . && git commit -qm 1");
    let user = String::from_utf8(Command::new("id").arg("-un").output().expect("id").stdout).expect("text");
    let url = format!("ssh://{}@127.0.0.1:{}{}", user.trim(), sshd.port, path.display());
    let with = |key: &str, host: &str| {
        // A Secret's value often has no newline at its end.
        let key = sshd.file(key).trim_end().to_owned();
        Secrets::of(&[("identity", &key), ("known_hosts", &sshd.known_hosts(host))]).expect("fine")
    };
    let fetch = Fetch::new();
    let found = fetch.run(&git(&url, |_| {}), &with("user", "host")).expect("fetched");
    assert_eq!((found.revision.len(), fetch.read("a").as_str()), (40, "hello\n"));
    refused(
        fetch.run(&git(&url, |_| {}), &with("stranger", "host")),
        Kind::Unauthorized,
        "Permission denied",
    );
    refused(fetch.run(&git(&url, |_| {}), &with("user", "stranger")), Kind::Unauthorized, "known_hosts");
    let missing = url.replace("app.git", "none.git");
    refused(fetch.run(&git(&missing, |_| {}), &with("user", "host")), Kind::NotFound, "git repository");
    refused(fetch.run(&git(&url, |_| {}), &Secrets::default()), Kind::Unauthorized, "identity");
    let closed = url.replace(&format!(":{}", sshd.port), ":1");
    refused(fetch.run(&git(&closed, |_| {}), &with("user", "host")), Kind::Unavailable, "Connection refused");
}
