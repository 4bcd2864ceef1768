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
