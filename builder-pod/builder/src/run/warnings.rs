//! Warnings on their way out: to the log, to the journal, and to the failure where they are to fail the build.

use kiln_contract::journal::{Event, MAX_WARNING, MAX_WARNINGS, Warning, Warnings};
use kiln_contract::text::{printable, truncate};
use kiln_contract::{Failure, FailureClass, reason};
use kiln_dockerfile::lint::{Check, Finding, Findings};

use super::Build;
use crate::courier::CourierError;
use crate::solve::log::{Entry, Log};

impl Build<'_> {
    /// Tells of all warnings that nobody was told of yet.
    pub(super) fn tell_findings(&mut self, log: &mut dyn Log) -> Result<(), CourierError> {
        let mut findings = std::mem::take(&mut self.findings);
        if findings.count == 0 {
            return Ok(());
        }
        findings.sort();
        let file = &self.request.dockerfile;
        for finding in &findings.kept {
            log.entry(Entry::Warning { text: &format!("{file}:{}: {finding}", finding.line) });
        }
        let more = findings.count.saturating_sub(findings.kept.len());
        if more > 0 {
            log.entry(Entry::Warning { text: &format!("{file}: and {more} more") });
        }
        self.courier.event(Event::Warnings(bounded(&findings)))
    }
}

/// As the journal has them.
fn bounded(findings: &Findings) -> Warnings {
    let warning = |finding: &Finding| Warning {
        rule: finding.rule.name().to_owned(),
        line: finding.line,
        message: truncate(&printable(&finding.message), MAX_WARNING),
    };
    Warnings {
        count: u32::try_from(findings.count).unwrap_or(u32::MAX),
        items: findings.kept.iter().take(MAX_WARNINGS).map(warning).collect(),
    }
}

/// The failure where `check` has warnings fail the build, and there is one.
pub(super) fn fatal(check: &Check, findings: &Findings, file: &str) -> Option<Failure> {
    let first = findings.kept.iter().min_by_key(|finding| finding.line).filter(|_| check.is_error())?;
    let more = match findings.count - 1 {
        0 => String::new(),
        1 => ", and 1 more warning".to_owned(),
        more => format!(", and {more} more warnings"),
    };
    let message = format!("{first}{more}; check=error=true has warnings fail the build");
    Some(Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, message).at(file, first.line))
}
