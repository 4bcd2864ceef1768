//! Caches of `RUN --mount=type=cache` from build to build (`--cache-dir`).
//!
//! Needs root and `/bin/busybox` (package busybox-static); says so and passes where they are missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

#[test]
fn caches_outlast_a_build_where_a_directory_is_given() -> Result<()> {
    let busybox = Path::new("/bin/busybox");
    if Command::new("id").arg("-u").output()?.stdout != b"0\n" || !busybox.exists() {
        println!("not run: it needs root and /bin/busybox");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let context = dir.path().join("context");
    std::fs::create_dir(&context)?;
    for applet in ["sh", "cat", "stat"] {
        std::fs::copy(busybox, context.join(applet))?;
    }
    std::fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nENV PATH=/bin\nCOPY sh cat stat /bin/\n\
         RUN --mount=type=cache,target=/c,uid=7,mode=0750 cat /c/f || echo none; echo run >> /c/f\n\
         RUN --mount=type=cache,target=/c,uid=7,mode=0750,sharing=locked cat /c/f && stat -c '%a %u' /c && false\n",
    )?;
    let build = |more: &[&str]| -> Result<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("build").arg(&context).args(more).env_remove("KILN_CACHE_DIR");
        let done = command.arg("--work-dir").arg(dir.path()).output()?;
        Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
    };
    let caches = dir.path().join("caches").display().to_string();
    for (more, before, after) in [
        (&[][..], "none\n", "run\n750 7\n"),
        (&["--cache-dir", &caches], "none\n", "run\n750 7\n"),
        (&["--cache-dir", &caches], "run\n", "run\nrun\n750 7\n"),
        (&[], "none\n", "run\n750 7\n"),
    ] {
        let log = build(more)?;
        let expected = format!("{after}The command");
        ensure!(log.contains(before) && log.contains(&expected), "{more:?}: {log}");
        ensure!(log.contains("error: Dockerfile:5: "), "{more:?}: {log}");
    }
    let log = build(&["--cache-dir", "/dev/shm/kiln-test-caches"])?;
    let _ = std::fs::remove_dir_all("/dev/shm/kiln-test-caches");
    ensure!(log.contains("on another file system"), "{log}");
    Ok(())
}
