//! `RUN --mount=type=ssh` with OpenSSH's own program in the step, against a key file and against an agent of this machine.
//!
//! Needs root, ssh-add and ssh-keygen; says so and passes where they are missing.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

fn run(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("{command:?}"))
}

/// Copies a program with its libraries below `root`, at the same places.
fn copy_program(program: &str, root: &Path) -> Result<()> {
    let listed = run(Command::new("ldd").arg(program))?;
    let text = String::from_utf8(listed.stdout)?;
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain([program]) {
        let to = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().context("a parent")?)?;
        std::fs::copy(path, to).with_context(|| path.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_step_signs_with_a_key_that_it_never_sees() -> Result<()> {
    let tools = ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen", "/usr/bin/ssh-agent"];
    let user = run(Command::new("id").arg("-u"))?.stdout;
    if user != b"0\n" || tools.iter().any(|tool| !Path::new(tool).exists()) {
        println!("not run: it needs root, ssh-add, ssh-keygen and ssh-agent");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (context, key) = (dir.path().join("context"), dir.path().join("key"));
    copy_program("/usr/bin/ssh-add", &context)?;
    copy_program("/usr/bin/ssh-keygen", &context)?;
    std::fs::create_dir(context.join("etc"))?;
    std::fs::write(context.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")?;
    std::fs::write(context.join("data"), "data")?;
    std::fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nCOPY . /\n\
         RUN --mount=type=ssh,required [\"/usr/bin/ssh-add\", \"-L\"]\n\
         RUN --network=none --mount=type=ssh [\"/usr/bin/ssh-keygen\", \"-Y\", \"sign\", \"-n\", \"file\", \"-f\", \"/key.pub\", \"/data\"]\n\
         RUN [\"/usr/bin/ssh-keygen\", \"-l\", \"-f\", \"/key.pub\"]\n\
         USER app\nENV SSH_AUTH_SOCK=/agent\n\
         RUN --mount=type=ssh,target=/agent,uid=1000 [\"/usr/bin/ssh-add\", \"-l\"]\n\
         RUN [\"/usr/bin/ssh-add\", \"-l\"]\n",
    )?;
    let made = run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f"])
        .arg(&key))?;
    ensure!(made.status.success(), "{made:?}");
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    std::fs::copy(key.with_extension("pub"), context.join("key.pub"))?;

    let socket = dir.path().join("agent");
    let mut agent = Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let added = (0..100).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Command::new("ssh-add")
            .arg("-q")
            .arg(&key)
            .env("SSH_AUTH_SOCK", &socket)
            .status()
            .ok()
            .filter(std::process::ExitStatus::success)
    });
    let results = [
        (vec!["--ssh".to_owned(), format!("default={}", key.display())], None),
        (vec!["--ssh".to_owned(), "default".to_owned()], Some(&socket)),
        (vec![], None),
    ]
    .map(|(arguments, socket)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("build").arg(&context).args(arguments).env_remove("SSH_AUTH_SOCK");
        command.envs(socket.map(|path| ("SSH_AUTH_SOCK", path)));
        run(&mut command).map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
    });
    let _ = agent.kill();
    let _ = agent.wait();
    ensure!(added.is_some(), "ssh-agent did not start");
    let [with_key, with_agent, without] = results;
    for log in [with_key?, with_agent?] {
        ensure!(log.contains(public.trim()), "{log}");
        ensure!(log.matches("256 SHA256:").count() == 2, "as root and as app: {log}");
        ensure!(log.contains("Signing file /data"), "{log}");
        // The last step has no agent any more, and that is all that fails.
        ensure!(log.contains("error: Dockerfile:9: the command"), "{log}");
    }
    ensure!(without?.contains("error: Dockerfile:3: the ssh agent default is required"), "it is named");
    Ok(())
}
