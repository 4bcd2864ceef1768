//! Finding and executing a step's command, with docker's words for what goes wrong.

use std::convert::Infallible;
use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

/// Changes to the working directory. `Err` is the kernel's answer.
///
/// # Errors
/// As `chdir`.
pub fn enter_directory(cwd: &str) -> rustix::io::Result<()> {
    rustix::process::chdir(cwd)
}

/// Executes the command in place of this process.
///
/// # Errors
/// In words, when it can't be executed.
pub fn execute(argv: &[String], env: &[String]) -> Result<Infallible, String> {
    let name = argv.first().ok_or("the command is empty")?;
    let path = find(name, env)?;
    let arguments = pointers(argv).ok_or_else(|| format!("exec: {name:?}: an argument holds a zero byte"))?;
    let environment = pointers(env).ok_or_else(|| format!("exec: {name:?}: a variable holds a zero byte"))?;
    let program = CString::new(path.as_str()).map_err(|_| format!("exec: {name:?}: holds a zero byte"))?;
    // SAFETY: both arrays end with a null pointer and point to strings that live until the call returns, if it does.
    unsafe { libc::execve(program.as_ptr(), arguments.1.as_ptr(), environment.1.as_ptr()) };
    Err(format!("exec {path}: {}", words(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))))
}

type Pointers = (Vec<CString>, Vec<*const libc::c_char>);

fn pointers(strings: &[String]) -> Option<Pointers> {
    let owned: Vec<CString> =
        strings.iter().map(|text| CString::new(text.as_str()).ok()).collect::<Option<_>>()?;
    let pointers = owned.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    Some((owned, pointers))
}

/// Where the command is: a name with a slash as it is, another one in the directories of the step's own `PATH`.
fn find(name: &str, env: &[String]) -> Result<String, String> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Err(error) => Err(format!("exec: {name:?}: {}", words(error.raw_os_error()))),
        };
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    path.split(':')
        .filter(|directory| !directory.is_empty() && !name.is_empty())
        .map(|directory| format!("{}/{name}", directory.trim_end_matches('/')))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn executable(path: &str) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// An error number as Go programs, docker among them, print it.
pub fn words(number: i32) -> String {
    let text = std::io::Error::from_raw_os_error(number).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    // "No such file" -> "no such file".
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn commands_are_looked_up_in_the_steps_own_path() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().display().to_string();
        for (name, mode) in [("yes", 0o755), ("no", 0o644)] {
            let path = place.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(place.path().join("directory")).unwrap();
        let env = [format!("PATH=/nonexistent::{base}")];
        let not_found = |name: &str| Err(format!("exec: {name:?}: executable file not found in $PATH"));
        assert_eq!(find("yes", &env), Ok(format!("{base}/yes")));
        assert_eq!(find("no", &env), not_found("no"));
        assert_eq!(find("directory", &env), not_found("directory"));
        assert_eq!(find("yes", &[]), not_found("yes"));
        assert_eq!(find("", &env), not_found(""));
        let absolute = format!("{base}/yes");
        assert_eq!(find(&absolute, &[]), Ok(absolute));
        assert_eq!(
            find("/nonexistent/x", &env).unwrap_err(),
            r#"exec: "/nonexistent/x": stat /nonexistent/x: no such file or directory"#
        );
        assert_eq!(find("/", &env).unwrap_err(), r#"exec: "/": is a directory"#);
        assert_eq!(
            find(&format!("{base}/no"), &env).unwrap_err(),
            format!("exec: \"{base}/no\": permission denied")
        );
    }

    #[test]
    fn error_words_are_in_lower_case() {
        assert_eq!(words(libc::ENOEXEC), "exec format error");
        assert_eq!(words(libc::ENOENT), "no such file or directory");
    }
}
