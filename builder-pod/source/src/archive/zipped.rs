//! zip: stored and deflated entries, with the modes and links that Unix writers note.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::place::{Placer, Time};
use crate::error::Fault;
use crate::limits::{Budget, MAX_FILES, MAX_PATH};

/// File type bits of a Unix mode, and those of a link.
const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;

/// Unpacks a zip.
pub(super) fn unpack(file: File, tree: &Path, budget: &mut Budget) -> Result<(), Fault> {
    let mut archive = ZipArchive::new(file).map_err(|e| fault(&e))?;
    if archive.len() as u64 > MAX_FILES {
        return Err(Fault::too_large(format!(
            "the source's archive has {} entries, more than the {MAX_FILES} that it may have",
            archive.len()
        )));
    }
    let mut placer = Placer::new(tree, budget)?;
    for number in 0..archive.len() {
        let mut entry = archive.by_index(number).map_err(|e| fault(&e))?;
        let path = entry.name_raw().to_vec();
        if path.contains(&b'\\') {
            return Err(Fault::invalid(format!(
                "the source's archive has a name with a backslash: {:?}; expected / between directories",
                entry.name()
            )));
        }
        let time = entry.last_modified().map_or((0, 0), |t| seconds(&t));
        let mode = entry.unix_mode().unwrap_or(0o644);
        if entry.is_dir() {
            placer.directory(&path, time)?;
        } else if mode & TYPE == LINK {
            let mut target = Vec::new();
            let read = (&mut entry).take(MAX_PATH as u64 + 1).read_to_end(&mut target);
            read.map_err(|e| super::read_error(&e))?;
            placer.symlink(&path, &target, time)?;
        } else {
            placer.file(&path, mode, time, &mut entry)?;
        }
    }
    placer.finish()
}

fn fault(error: &ZipError) -> Fault {
    match error {
        ZipError::Io(e) => super::read_error(e),
        other => Fault::invalid(format!("the source's zip can't be read: {other}")),
    }
}

/// MS-DOS time knows no zone; it is taken for UTC. Days from civil (Howard Hinnant's algorithm).
fn seconds(time: &zip::DateTime) -> Time {
    let (year, month, day) = (i64::from(time.year()), i64::from(time.month()), i64::from(time.day()));
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let clock = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    (days * 86_400 + clock, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dos_times_are_utc() {
        let time = zip::DateTime::from_date_and_time(2020, 2, 29, 12, 34, 56).expect("a time");
        assert_eq!(seconds(&time), (1_582_979_696, 0));
        let first = zip::DateTime::from_date_and_time(1980, 1, 1, 0, 0, 0).expect("a time");
        assert_eq!(seconds(&first), (315_532_800, 0));
    }
}
