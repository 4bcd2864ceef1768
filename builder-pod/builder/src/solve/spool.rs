//! The file that a layer is compressed into. A large one begins its way to the output before it is whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use super::failure::{Halt, internal};
use crate::courier::{Courier, Growing};

/// A layer of at least so many bytes is sent while it is made. A smaller one is made in the time of a few requests; and what
/// is sent early is sent even if the output turns out to have it.
const LARGE: u64 = 16 << 20;
/// How much it grows until the courier is told: a piece of what it sends.
const STEP: u64 = 1 << 20;

/// A file that goes when its last descriptor does: its name, which nobody else has at that time, is taken away at once.
pub(super) fn spool_file(spool: &Path, name: &str) -> Result<File, Halt> {
    let path = spool.join(name);
    let open = File::options().read(true).write(true).create_new(true).open(&path);
    let file = open.and_then(|file| std::fs::remove_file(&path).map(|()| file));
    file.map_err(|e| internal(format!("making {}: {e}", path.display())).into())
}

/// Writes into such a file, and tells a courier how it grows.
pub(super) struct Spool<'a> {
    file: &'a File,
    /// Whom to tell; nobody where the layer is not for the output, or where telling did not work.
    courier: Option<&'a dyn Courier>,
    growing: Option<Box<dyn Growing>>,
    written: u64,
    told: u64,
}

impl<'a> Spool<'a> {
    /// Into an empty file.
    pub fn new(file: &'a File, courier: Option<&'a dyn Courier>) -> Self {
        Self { file, courier, growing: None, written: 0, told: 0 }
    }

    /// What is on its way already.
    pub fn growing(self) -> Option<Box<dyn Growing>> {
        self.growing
    }

    fn tell(&mut self) {
        let Some(courier) = self.courier else { return };
        if self.written < LARGE || self.written - self.told < STEP {
            return;
        }
        self.told = self.written;
        let growing = match self.growing.take() {
            Some(growing) => Ok(growing),
            None => courier.begin_blob(self.file.as_fd()),
        };
        let told = growing.and_then(|mut growing| growing.grown(self.written).map(|()| growing));
        match told {
            Ok(growing) => self.growing = Some(growing),
            // The whole file is put at its end, and then it is said what is wrong.
            Err(_) => self.courier = None,
        }
    }
}

impl Write for Spool<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        self.tell();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fakes::FakeCourier;
    use super::*;

    /// Writes `mebibytes`, and gives what the courier was told.
    fn told(courier: Option<&FakeCourier>, mebibytes: usize) -> (Vec<u64>, bool) {
        let file = tempfile::tempfile().unwrap();
        let mut spool = Spool::new(&file, courier.map(|c| c as &dyn Courier));
        for _ in 0..2 * mebibytes {
            spool.write_all(&[7; 512 << 10]).unwrap();
        }
        assert_eq!(file.metadata().unwrap().len(), (mebibytes as u64) << 20);
        let grows = spool.growing().is_some();
        (courier.map(|c| c.grown.lock().unwrap().clone()).unwrap_or_default(), grows)
    }

    #[test]
    fn a_large_layer_is_told_of_as_it_grows_and_a_small_one_is_not() {
        let courier = FakeCourier { takes_growing: true, ..FakeCourier::default() };
        assert_eq!(told(Some(&courier), 15), (vec![], false));
        assert_eq!(told(Some(&courier), 18), (vec![16 << 20, 17 << 20, 18 << 20], true));
        assert_eq!(courier.notes.of(&["begin_blob"]).len(), 1);
    }

    #[test]
    fn a_layer_that_cannot_be_told_of_is_made_all_the_same() {
        assert_eq!(told(None, 18), (vec![], false));
        let courier = FakeCourier::default();
        assert_eq!(told(Some(&courier), 18), (vec![], false));
        // It is not asked again and again.
        assert_eq!(courier.notes.of(&["begin_blob"]).len(), 1);
    }
}
