//! WORKDIR, USER and `--chown`: directories, users and owners are those of the image.

use super::*;
use crate::engine::{Owner, User};
use crate::tree::{TreeError, make_directory, owner, user};

#[test]
fn working_directories_are_made_inside() {
    if !root() {
        return;
    }
    let made = |there: &str, path: &str| {
        let tree = Tree::with(there);
        let result = make_directory(tree.fd(), path, Owner { uid: 33, gid: 34 });
        tree.assert_contained();
        result.map(|()| tree.lines().join(", "))
    };
    assert_eq!(made("", "/a/b").unwrap(), "a dir 755 33:34, a/b dir 755 33:34");
    assert_eq!(made("mkdir a", "/a/").unwrap(), "a dir 755 0:0");
    assert_eq!(made("", "/").unwrap(), "");
    assert_eq!(made("ln -s /etc a", "/a/../../../x").unwrap(), "a link 0:0 /etc, x dir 755 33:34");
    assert_eq!(
        made("ln -s /real a", "/a/b").unwrap(),
        "a link 0:0 /real, real dir 755 33:34, real/b dir 755 33:34"
    );
    assert_eq!(made("", "/proc/self/fd/7").unwrap().matches("dir 755 33:34").count(), 4);
    for (there, path) in [("echo x > a", "/a"), ("echo x > a", "/a/b")] {
        assert!(matches!(made(there, path).unwrap_err(), TreeError::User { .. }));
    }
}

const USERS: &str = "mkdir etc; cat > etc/passwd <<'X'
root:x:0:0:root:/root:/bin/sh
broken:x:zero:0::/:/bin/sh
app:x:1500:1600::/home/app:/bin/sh
big:x:70000:1::/:/bin/sh
7zip:x:77:78::/z:/bin/sh
X
cat > etc/group <<'X'
root:x:0:root
wheel:x:10:root
app:x:1600:
team:x:1700:other,app
X";

#[test]
fn users_are_looked_up_in_the_image() {
    let tree = Tree::with(USERS);
    let found = |text: &str| user(tree.fd(), text);
    let is = |uid, gid, groups: &[u32], home: &str| User {
        owner: Owner { uid, gid },
        groups: groups.to_vec(),
        home: home.to_owned(),
    };
    assert_eq!(found("").unwrap(), is(0, 0, &[0, 10], "/root"));
    assert_eq!(found("root").unwrap(), is(0, 0, &[0, 10], "/root"));
    assert_eq!(found("app").unwrap(), is(1500, 1600, &[1600, 1700], "/home/app"));
    assert_eq!(found("1500").unwrap(), is(1500, 1600, &[1600, 1700], "/home/app"));
    // A named group takes the place of all others.
    assert_eq!(found("app:app").unwrap(), is(1500, 1600, &[1600], "/home/app"));
    assert_eq!(found("app:team").unwrap(), is(1500, 1700, &[1700], "/home/app"));
    assert_eq!(found("1500:3").unwrap(), is(1500, 3, &[3], "/home/app"));
    assert_eq!(found("1234").unwrap(), is(1234, 0, &[0], "/"));
    assert_eq!(found("65534:65534").unwrap(), is(65534, 65534, &[65534], "/"));
    assert_eq!(found("7zip").unwrap(), is(77, 78, &[78], "/z"));
    for text in
        ["4294967296", "-1", "+1", "0x0", "65535", "99999999999999999999", "0:4294967296", "0:-1", "big"]
    {
        let error = found(text).unwrap_err();
        assert!(
            matches!(error, TreeError::User { .. }) && error.to_string().contains("0 to 65534"),
            "{text}: {error}"
        );
    }
    for text in ["ghost", "broken", "app:ghost", "٣", "root "] {
        let error = found(text).unwrap_err();
        assert!(
            matches!(error, TreeError::User { .. }) && error.to_string().contains("unable to find"),
            "{text}: {error}"
        );
    }
    let bare = Tree::new();
    assert_eq!(user(bare.fd(), "0:5").unwrap(), is(0, 5, &[5], "/"));
    assert!(user(bare.fd(), "root").is_err());
}

#[test]
fn owners_fall_back_as_buildkits_do() {
    let tree = Tree::with(USERS);
    let found = |text: &str| owner(tree.fd(), text).map(|o| (o.uid, o.gid));
    for (text, expected) in [
        ("12", (12, 12)),
        ("12:34", (12, 34)),
        ("app", (1500, 1600)),
        ("app:team", (1500, 1700)),
        (":team", (0, 1700)),
        ("77:team", (77, 1700)),
        ("app:root", (1500, 0)),
        ("root", (0, 0)),
        ("ghost", (0, 0)),
        ("0:ghost", (0, 0)),
        ("app:ghost", (1500, 1600)),
        ("root:$(id)", (0, 0)),
    ] {
        assert_eq!(found(text).unwrap(), expected, "{text}");
    }
    for text in ["4294967296", "-1", "0x0", "0:70000", "big"] {
        assert!(matches!(found(text).unwrap_err(), TreeError::User { .. }), "{text}");
    }
    assert_eq!(owner(Tree::new().fd(), "app").unwrap(), Owner::default());
}

#[test]
fn passwd_files_that_are_none_end_it_at_once() {
    for script in [
        "mkdir etc; mkfifo etc/passwd",
        "mkdir -p etc/passwd",
        "mkdir etc; ln -s passwd etc/passwd",
        "mkdir etc; truncate -s 1G etc/passwd",
    ] {
        let tree = Tree::with(script);
        let error = user(tree.fd(), "app").unwrap_err();
        assert!(matches!(error, TreeError::User { .. }), "{script}: {error:?}");
    }
    // A link is followed in the image: no file of the machine is read.
    let tree = Tree::with("mkdir etc dev; ln -s /dev/zero etc/passwd; ln -s /etc/passwd dev/x");
    assert!(user(tree.fd(), "root").unwrap_err().to_string().contains("unable to find user"));
}
