//! `kiln-node`: puts the seccomp profile of builder pods where a node's kubelet looks for it, and keeps it there.
//!
//! The chart runs it as a DaemonSet. It copies one file (from a ConfigMap volume) to another (below a hostPath volume),
//! looks every half minute whether the two are still the same, and ends on SIGTERM.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: kiln-node [--check] --profile FILE --to FILE\n\
  copies the seccomp profile to the kubelet's directory and keeps it there until SIGTERM\n\
  --check  write nothing; exit 1 when the profile is not there yet";

/// How often the copy is looked at: a node's clean-up may take it away, and a new version of the chart may change it.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Bytes of a profile at most. A ConfigMap holds 1 MiB; ours has 9 KiB.
const MAX_PROFILE: u64 = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Args {
    check: bool,
    profile: PathBuf,
    to: PathBuf,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut check, mut profile, mut to) = (false, None, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--check" => check = true,
            "--profile" => profile = args.next().map(PathBuf::from),
            "--to" => to = args.next().map(PathBuf::from),
            other => return Err(format!("unknown argument {other}\n{USAGE}")),
        }
    }
    match (profile, to) {
        (Some(profile), Some(to)) => Ok(Args { check, profile, to }),
        _ => Err(format!("--profile and --to are both needed\n{USAGE}")),
    }
}

/// A file's bytes; an error that names the file.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = fs::metadata(path).map_err(|e| format!("can't read {}: {e}", path.display()))?.len();
    if size > MAX_PROFILE {
        return Err(format!("{} has {size} bytes, more than the {MAX_PROFILE} of a profile", path.display()));
    }
    fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))
}

/// Whether `to` holds what `profile` holds.
fn is_there(args: &Args) -> Result<bool, String> {
    let wanted = read(&args.profile)?;
    match fs::read(&args.to) {
        Ok(found) => Ok(found == wanted),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(format!("can't read {}: {e}", args.to.display())),
    }
}

/// Makes `to` a copy of `profile`; true when it was not. The kubelet may read at any moment, so the new file takes its
/// name only when it is whole.
fn install(args: &Args) -> Result<bool, String> {
    if is_there(args)? {
        return Ok(false);
    }
    let wanted = read(&args.profile)?;
    if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&wanted).is_err() {
        return Err(format!("{} is no JSON object, so it can be no seccomp profile", args.profile.display()));
    }
    let directory = args.to.parent().unwrap_or(Path::new("/"));
    let part = args.to.with_extension("part");
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = fs::File::create(&part)?;
        file.write_all(&wanted)?;
        file.sync_all()?;
        fs::rename(&part, &args.to)
    };
    write().map_err(|e| format!("can't write {}: {e}", args.to.display()))?;
    Ok(true)
}

async fn keep(args: &Args) -> Result<(), String> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("can't wait for SIGTERM: {e}"))?;
    if !install(args)? {
        println!("{} is there already", args.to.display());
    } else {
        println!("wrote {}", args.to.display());
    }
    let mut look = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = look.tick() => {
                if install(args)? {
                    println!("wrote {} again: it was gone or another one", args.to.display());
                }
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match parse(std::env::args().skip(1)) {
        Err(message) => Err(message),
        Ok(args) if args.check => match is_there(&args) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} is not there yet", args.to.display())),
            Err(message) => Err(message),
        },
        Ok(args) => keep(&args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kiln-node: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test's own, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kiln-node-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory below the temporary one");
            Self(path)
        }

        fn args(&self, profile: &str) -> Args {
            fs::write(self.0.join("profile"), profile).expect("the profile can be written");
            Args { check: false, profile: self.0.join("profile"), to: self.0.join("seccomp/kiln/build.json") }
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn arguments_are_named_and_both_needed() {
        let parse = |words: &[&str]| parse(words.iter().map(ToString::to_string));
        let args = parse(&["--profile", "a", "--to", "b"]).expect("both are there");
        assert_eq!(args, Args { check: false, profile: "a".into(), to: "b".into() });
        assert!(parse(&["--profile", "a"]).is_err());
        assert!(parse(&["--profile", "a", "--to"]).is_err());
        assert!(parse(&["--frofile", "a", "--to", "b"]).is_err());
    }

    #[test]
    fn a_missing_and_a_changed_profile_are_written_and_an_equal_one_is_left_alone() {
        let directory = Directory::new("install");
        let args = directory.args("{}");
        assert_eq!(is_there(&args), Ok(false));
        assert_eq!(install(&args), Ok(true));
        assert_eq!(install(&args), Ok(false));
        let args = directory.args(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
        assert_eq!(install(&args), Ok(true));
        assert_eq!(is_there(&args), Ok(true));
    }

    #[test]
    fn what_is_no_profile_never_replaces_one() {
        let directory = Directory::new("refuse");
        assert_eq!(install(&directory.args("{}")), Ok(true));
        let args = directory.args("half a prof");
        assert!(install(&args).is_err());
        assert_eq!(fs::read_to_string(&args.to).ok().as_deref(), Some("{}"));
    }
}
