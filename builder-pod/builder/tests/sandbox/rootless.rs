//! A plain machine: a user without rights, but with subordinate ids.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kiln_builder::sandbox::process::{self, Fork};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Gid, Uid, WaitOptions};
use rustix::thread::UnshareFlags;

const ROOTLESS: &str = "__rootless";

/// A user that this machine does not have.
const USER: u32 = 54_321;

/// The workspace, when this program was started by the user.
pub fn work_dir(arguments: &[String]) -> Option<&Path> {
    (arguments.get(1)? == ROOTLESS).then(|| arguments.get(2).map(Path::new)).flatten()
}

/// Runs this program again as the user, with the workspace `place`.
pub fn run(place: &Path, filter: Option<&str>) -> Result<()> {
    if !Path::new("/usr/bin/newuidmap").exists() {
        println!("rootless: not run: it needs /usr/bin/newuidmap (package uidmap)");
        return Ok(());
    }
    std::fs::create_dir(place)?;
    std::os::unix::fs::chown(place, Some(USER), Some(USER))?;
    match process::fork()? {
        Fork::Child => {
            let error = become_user(place, filter).unwrap_err();
            println!("cannot become a user: {error:#}");
            std::process::exit(1)
        }
        Fork::Parent(pid) => {
            let status = rustix::process::waitpid(Some(pid), WaitOptions::empty())?.context("no status")?.1;
            if status.exit_status() == Some(0) { Ok(()) } else { bail!("{status:?}") }
        }
    }
}

fn become_user(place: &Path, filter: Option<&str>) -> Result<std::convert::Infallible> {
    // SAFETY: one thread, and the table of descriptors stays.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // The machine's own files stay as they are; only this process sees these.
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let ranges = "kilntest:3000000:65536\n".to_owned();
    for (file, text) in [
        ("/etc/passwd", format!("{passwd}kilntest:x:{USER}:{USER}::/:/bin/sh\n")),
        ("/etc/subuid", ranges.clone()),
        ("/etc/subgid", ranges),
    ] {
        let fake = place.with_extension("file");
        std::fs::write(&fake, text)?;
        rustix::mount::mount_bind(&fake, file).with_context(|| format!("no {file}"))?;
        std::fs::remove_file(&fake)?;
    }
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let mut words = vec!["sandbox".to_owned(), ROOTLESS.to_owned()];
    words.extend(place.to_str().map(str::to_owned));
    words.extend(filter.map(str::to_owned));
    let words: Vec<CString> = words.into_iter().map(CString::new).collect::<Result<_, _>>()?;
    let pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    let none = [std::ptr::null()];
    let program = CString::new(Path::new("/proc/self/exe").as_os_str().as_bytes())?;
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), none.as_ptr()) };
    Err(std::io::Error::last_os_error().into())
}
