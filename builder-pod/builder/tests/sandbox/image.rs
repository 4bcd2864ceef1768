//! Small images made of busybox, written with the ids of a step's root.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use kiln_builder::sandbox::idmap::IdMap;

pub const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 32] = [
    "sh", "cat", "echo", "ls", "id", "su", "kill", "sleep", "mount", "unshare", "hostname", "grep", "env",
    "ip", "ping", "touch", "mkdir", "rm", "yes", "head", "true", "false", "pwd", "chown", "chmod", "stat",
    "test", "readlink", "sort", "tr", "ps", "wc",
];

/// Runs `work` with the file-system ids that a step's user `id` has outside.
pub fn as_id<T>(map: IdMap, id: u32, work: impl FnOnce() -> T) -> T {
    let outside = map.outside(id).expect("an id of the map");
    // SAFETY: numbers only; the ids are of this thread, and are put back below.
    unsafe {
        libc::setfsgid(outside);
        libc::setfsuid(outside);
    }
    let result = work();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(0);
        libc::setfsgid(0);
    }
    result
}

/// Writes an image with a shell, a root without password and a user `app` (1000).
pub fn write(tree: &Path, map: IdMap) -> Result<()> {
    let bytes = fs::read(BUSYBOX)?;
    as_id(map, 0, || -> Result<()> {
        fs::create_dir(tree).with_context(|| tree.display().to_string())?;
        for directory in ["bin", "etc", "tmp", "root", "home"] {
            fs::create_dir(tree.join(directory))?;
        }
        let binary = tree.join("bin/busybox");
        fs::write(&binary, &bytes)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o4755))?;
        for applet in APPLETS {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
        fs::write(
            tree.join("etc/passwd"),
            "root::0:0:root:/root:/bin/sh\napp::1000:1000:app:/home/app:/bin/sh\n",
        )?;
        fs::write(tree.join("etc/group"), "root:x:0:\napp:x:1000:\n")?;
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::set_permissions(tree.join("root"), fs::Permissions::from_mode(0o700))?;
        fs::set_permissions(tree.join("home"), fs::Permissions::from_mode(0o777))?;
        Ok(())
    })?;
    as_id(map, 1000, || fs::create_dir(tree.join("home/app")))?;
    Ok(())
}
