//! Faults for processes of the cluster on this machine: killed with -9, stopped and let go on. A cluster elsewhere has none.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Processes that were found.
#[derive(Debug)]
pub struct Processes(Vec<i32>);

impl Processes {
    /// Those of that program whose command line and cgroup, taken together, contain `part`: a flag, or the UID of a pod.
    ///
    /// # Errors
    /// `/proc` could not be read.
    pub fn find(program: &str, part: &str) -> Result<Self> {
        // The systemd driver writes a pod's UID with underscores.
        let other = part.replace('-', "_");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            // The kernel keeps 15 bytes of a name.
            let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
            let all = [read("cmdline"), read("cgroup")].concat();
            let all = String::from_utf8_lossy(&all).into_owned();
            if name == program[..program.len().min(15)] && (all.contains(part) || all.contains(&other)) {
                found.push(pid);
            }
        }
        Ok(Self(found))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value of a flag (`--config=FILE`) on the first one's command line.
    ///
    /// # Errors
    /// There is none, or it has no such flag.
    pub fn flag(&self, name: &str) -> Result<String> {
        let pid = self.0.first().context("no such process on this machine")?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).context("its command line")?;
        let words = line.split(|b| *b == 0).map(String::from_utf8_lossy);
        let start = format!("{name}=");
        let mut values = words.filter_map(|word| word.strip_prefix(&start).map(str::to_owned));
        values.next().with_context(|| format!("process {pid} has no flag {name}"))
    }

    /// A file as the first one sees it.
    ///
    /// # Errors
    /// There is no process, or no such file.
    pub fn file(&self, path: &str) -> Result<String> {
        let pid = self.0.first().context("no such process on this machine")?;
        fs::read_to_string(format!("/proc/{pid}/root{path}")).with_context(|| format!("{path} of {pid}"))
    }

    /// Sends each a signal (`KILL`, `STOP`, `CONT`).
    ///
    /// # Errors
    /// There is none, or one is gone.
    pub fn signal(&self, signal: &str) -> Result<()> {
        ensure!(!self.0.is_empty(), "no such process on this machine");
        for pid in &self.0 {
            let done = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status()?;
            ensure!(done.success(), "kill -{signal} {pid}");
        }
        Ok(())
    }
}
