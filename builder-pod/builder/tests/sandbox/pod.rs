//! A simulated pod: user namespace with 65536 ids, mount namespace, only `CAP_SETUID` and `CAP_SETGID`.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kiln_builder::sandbox::idmap::IdMap;
use kiln_builder::sandbox::process::{self, Fork};
use kiln_builder::sandbox::seccomp;
use rustix::mount::MountPropagationFlags;
use rustix::process::WaitOptions;
use rustix::thread::{CapabilitySet, UnshareFlags};

const IN_POD: &str = "__in-pod";

/// Where the pod's root is on the host.
const POD: IdMap = IdMap { outer: 2_000_000, count: 65536 };

/// What a pod's profile has to allow besides docker's default.
const NEEDED: [libc::c_long; 5] =
    [libc::SYS_unshare, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_sethostname];

/// How the pod was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Parts of `/proc` hidden, seccomp profile with just what is needed.
    Masked,
    /// `procMount: Unmasked`, no seccomp profile.
    Unmasked,
    /// The runtime's default profile.
    Forbidden,
}

/// The workspace, when this program was started inside the pod.
pub fn work_dir(arguments: &[String]) -> Option<&Path> {
    (arguments.get(1)? == IN_POD).then(|| arguments.get(2).map(Path::new)).flatten()
}

/// Runs this program again inside a pod with the workspace `place`.
pub fn run(place: &Path, kind: Kind, filter: Option<&str>) -> Result<()> {
    std::fs::create_dir(place)?;
    std::os::unix::fs::chown(place, Some(POD.outer), Some(POD.outer))?;
    let (born, mapped) = (process::Signal::new()?, process::Signal::new()?);
    match process::fork()? {
        Fork::Child => {
            drop((born.receiver, mapped.sender));
            let error = enter(place, kind, filter, &born.sender, mapped.receiver).unwrap_err();
            println!("cannot make a pod: {error:#}");
            std::process::exit(1)
        }
        Fork::Parent(pid) => {
            drop((born.sender, mapped.receiver));
            if process::hear(born.receiver)?.is_some() {
                process::write_maps(pid, POD)?;
                process::tell(&mapped.sender, 0)?;
            }
            let status = rustix::process::waitpid(Some(pid), WaitOptions::empty())?.context("no status")?.1;
            if status.exit_status() == Some(0) { Ok(()) } else { bail!("{status:?}") }
        }
    }
}

fn enter(
    place: &Path,
    kind: Kind,
    filter: Option<&str>,
    born: &std::os::fd::OwnedFd,
    mapped: std::os::fd::OwnedFd,
) -> Result<std::convert::Infallible> {
    // SAFETY: one thread, and the table of descriptors stays.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)? };
    process::tell(born, 0)?;
    process::hear(mapped)?.context("no ids")?;
    process::become_root()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    if kind != Kind::Unmasked {
        // As a container's runtime does; with this the kernel allows no fresh /proc below.
        rustix::mount::mount_bind("/dev/null", "/proc/timer_list")?;
    }
    for number in 0..=40 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !(CapabilitySet::SETUID | CapabilitySet::SETGID).contains(one) {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    match kind {
        Kind::Unmasked => {}
        Kind::Masked => seccomp::install(&seccomp::program(&NEEDED)?)?,
        Kind::Forbidden => seccomp::install(&seccomp::program(&[])?)?,
    }
    let mut words = vec!["sandbox".to_owned(), IN_POD.to_owned()];
    words.extend(place.to_str().map(str::to_owned));
    words.extend(filter.map(str::to_owned));
    let words: Vec<CString> = words.into_iter().map(CString::new).collect::<Result<_, _>>()?;
    let pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    let none = [std::ptr::null()];
    let program = CString::new(std::env::current_exe()?.as_os_str().as_bytes())?;
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), none.as_ptr()) };
    Err(std::io::Error::last_os_error().into())
}
