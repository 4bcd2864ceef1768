//! For plain machines: an outer user namespace in which an ordinary user has what a pod has, made of its own id and its
//! subordinate ones by the setuid programs newuidmap and newgidmap.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, WaitOptions, getegid, geteuid};
use rustix::thread::UnshareFlags;

use super::facts;
use super::fault::{At as _, Fault, Stage};
use super::{idmap, probe, process};
use crate::engine::{EngineError, EngineErrorKind};

/// Where the programs are when `PATH` does not lead there.
const USUAL: &str = "/usr/bin";

/// Enters the outer namespace and starts the program anew in it, unless it already is root. Call it in main, before any
/// thread is started, after [`crate::helper::dispatch_reexec`]; afterwards isolation `UserNamespace` works as in a pod.
///
/// # Errors
/// Kind `Isolation`, naming what has to be installed or configured.
pub fn enter_rootless_if_needed() -> Result<(), EngineError> {
    if geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = user_name(uid);
    let users = Mapper::new("newuidmap", "/etc/subuid", uid, uid, name.as_deref())?;
    let groups = Mapper::new("newgidmap", "/etc/subgid", gid, uid, name.as_deref())?;
    let explain = |fault: Fault| probe::explain(&fault, &facts::gather(Path::new("/")));
    move_in(&users, &groups).map_err(explain)?;
    let mut arguments = std::env::args_os();
    let itself = arguments.next().unwrap_or_else(|| OsString::from("kiln"));
    let error = Command::new("/proc/self/exe").arg0(itself).args(arguments).exec();
    Err(unavailable(format!("cannot start the program in its user namespace: {error}")))
}

fn move_in(users: &Mapper, groups: &Mapper) -> Result<(), Fault> {
    let ready = process::Signal::new()?;
    let this = rustix::process::getpid();
    let mapper = match process::fork().at(Stage::Launch, || "cannot start a process".to_owned())? {
        process::Fork::Parent(pid) => pid,
        // The maps have to be written from outside the namespace.
        process::Fork::Child => {
            drop(ready.sender);
            let told = matches!(process::hear(ready.receiver), Ok(Some(_)));
            std::process::exit(i32::from(!(told && groups.write(this) && users.write(this))))
        }
    };
    drop(ready.receiver);
    // SAFETY: the flag leaves the table of descriptors alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .at(Stage::Unshare, || "cannot make a user namespace (unshare)".to_owned())?;
    process::tell(&ready.sender, 0)?;
    let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(mapper), WaitOptions::empty()))
        .at(Stage::Launch, || "cannot wait for a process".to_owned())?;
    if status.and_then(|(_, status)| status.exit_status()) != Some(0) {
        let what = format!(
            "{} and {} refused to write `{}`: they must be setuid root (or have cap_setuid, cap_setgid), and \
             no_new_privs must not be set",
            users.program.display(),
            groups.program.display(),
            users.words().join(" "),
        );
        return Err(Fault::new(Stage::WriteMap, what));
    }
    process::become_root()
}

/// One of the two programs and what to tell it.
struct Mapper {
    program: PathBuf,
    own: u32,
    range: (u32, u32),
}

impl Mapper {
    fn new(program: &str, file: &str, own: u32, uid: u32, name: Option<&str>) -> Result<Self, EngineError> {
        let found = find(program).ok_or_else(|| {
            unavailable(format!(
                "{program} is not installed: building without root needs it (Debian, Ubuntu: package uidmap; Fedora: \
                 shadow-utils), or run as root"
            ))
        })?;
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let range = range(&text, uid, name).ok_or_else(|| {
            let name = name.map_or_else(|| uid.to_string(), str::to_owned);
            unavailable(format!(
                "{file} gives {name} no range of {} ids: building without root needs one, for instance the line \
                 `{name}:100000:{}` in /etc/subuid and in /etc/subgid (usermod --add-subuids), or run as root",
                idmap::FULL,
                idmap::FULL,
            ))
        })?;
        Ok(Self { program: found, own, range })
    }

    fn words(&self) -> [String; 6] {
        [0, self.own, 1, 1, self.range.0, self.range.1].map(|number| number.to_string())
    }

    fn write(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero().to_string();
        Command::new(&self.program).arg(pid).args(self.words()).status().is_ok_and(|status| status.success())
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain([PathBuf::from(USUAL)])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// The first range of a `/etc/subuid` that is large enough, given to the user by name or number: (first, count).
fn range(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().splitn(3, ':');
        let (who, first) = (fields.next()?, fields.next()?.parse().ok()?);
        let count: u32 = fields.next()?.parse().ok()?;
        let ours = Some(who) == name || who.parse() == Ok(uid);
        (ours && count >= idmap::FULL).then_some((first, idmap::FULL))
    })
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn unavailable(message: String) -> EngineError {
    EngineError { kind: EngineErrorKind::Isolation, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number() {
        let text = "other:100000:65536\nann:165536:1000\nann:231072:131072\n1001:400000:65536\nbad\n:x:y\n";
        assert_eq!(range(text, 1000, Some("ann")), Some((231_072, 65536)));
        assert_eq!(range(text, 1001, None), Some((400_000, 65536)));
        assert_eq!(range(text, 1002, Some("bob")), None);
        assert_eq!(range("", 1000, Some("ann")), None);
    }

    #[test]
    fn a_missing_program_or_range_is_named() {
        let missing = Mapper::new("newuidmap-of-nowhere", "/etc/subuid", 1000, 1000, None).err().unwrap();
        assert!(missing.message.contains("package uidmap"), "{}", missing.message);
        let missing = Mapper::new("sh", "/nonexistent", 1000, 1000, Some("ann")).err().unwrap();
        assert!(missing.message.contains("`ann:100000:65536` in /etc/subuid"), "{}", missing.message);
    }
}
