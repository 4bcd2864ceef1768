//! The operator's process: started, stopped and killed, with what it takes and what its metrics say.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where it serves its metrics.
const ADMIN: &str = "127.0.0.1:18080";

/// How it is started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub program: PathBuf,
    /// Its settings, without the limit.
    pub config: String,
    /// For its files: settings, logs.
    pub folder: PathBuf,
    /// With the rights that the chart gives it.
    pub kubeconfig: PathBuf,
}

/// It runs.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    /// When it was started.
    pub since: Instant,
}

/// What it has taken so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// MiB that it holds.
    pub rss: f64,
    /// MiB that it held at most.
    pub peak: f64,
    /// Seconds of CPU.
    pub cpu: f64,
}

impl Operator {
    /// Starts it with that many places, 0 for any number.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(setup: &Setup, number: usize, places: usize) -> Result<Self> {
        let config = setup.folder.join(format!("config-{number}.yaml"));
        fs::write(&config, format!("{}\nmaxConcurrentBuilds: {places}\n", setup.config))?;
        let log = File::create(setup.folder.join(format!("operator-{number}.log")))?;
        let child = Command::new(&setup.program)
            .arg("--config")
            .arg(&config)
            .args([
                "--admin-address",
                ADMIN,
                "--namespace",
                "kiln-system",
                "--identity",
                &format!("scale-{number}"),
            ])
            .env("KUBECONFIG", &setup.kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("can't start {}", setup.program.display()))?;
        // For who ends this program early: the operator does not end with it.
        fs::write(setup.folder.join("operator.pid"), child.id().to_string())?;
        Ok(Self { child, since: Instant::now() })
    }

    /// Ends it with that signal (`TERM`, `KILL`), and waits until it is gone.
    ///
    /// # Errors
    /// It can't be signalled, or does not end.
    pub async fn end(mut self, signal: &str) -> Result<()> {
        let done =
            Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status()?;
        ensure!(done.success(), "kill -{signal}");
        for _ in 0..600 {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the operator did not end within a minute of SIG{signal}")
    }

    /// What it has taken.
    ///
    /// # Errors
    /// It is gone.
    pub fn usage(&self) -> Result<Usage> {
        let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let status = of("status").context("the operator is gone; see its log")?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<f64>().ok()
        };
        let stat = of("stat")?;
        // After the name, which may hold anything: the 12th and 13th field, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
        Ok(Usage {
            rss: kib("VmRSS:").context("VmRSS")? / 1024.0,
            peak: kib("VmHWM:").context("VmHWM")? / 1024.0,
            cpu: (ticks(11) + ticks(12)) / 100.0,
        })
    }

    /// Whether `/readyz` says yes and it leads.
    pub async fn is_ready(&self) -> bool {
        let ready = ask("/readyz").await.is_ok_and(|text| text.starts_with("HTTP/1.1 200"));
        ready && Metrics::read().await.is_ok_and(|m| m.sum("kiln_leader", &[]) > 0.0)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ask(path: &str) -> Result<String> {
    let answer = async {
        let mut stream = TcpStream::connect(ADMIN).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    tokio::time::timeout(Duration::from_secs(10), answer).await?
}

/// Its metrics at a moment.
#[derive(Debug, Clone, Default)]
pub struct Metrics(String);

impl Metrics {
    /// Asks for them.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn read() -> Result<Self> {
        Ok(Self(ask("/metrics").await?))
    }

    /// The sum of all series of that name that have all of these labels (`result="ok"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let wanted = rest.is_empty() || rest.starts_with('{');
            (wanted && labels.iter().all(|l| rest.contains(l))).then(|| value.parse::<f64>().ok())?
        });
        series.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE a counter\na_total{result=\"ok\"} 3\na_total{result=\"error\"} 2\na_total_x 9\nb 1\n";
        let metrics = Metrics(text.to_owned());
        let ok = metrics.sum("a_total", &["result=\"ok\""]);
        assert!(metrics.sum("a_total", &[]) == 5.0 && ok == 3.0 && metrics.sum("b", &[]) == 1.0);
        assert!(metrics.sum("c", &[]) == 0.0);
    }
}
