//! What a person is told of a build, as it happens.

use kiln_contract::Failure;

/// Something to tell.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A step begins.
    Step {
        /// 1-based.
        number: u32,
        /// Of how many.
        total: u32,
        /// The instruction.
        text: &'a str,
    },
    /// Its command starts.
    Running {
        /// 12 hex digits that name this run of it.
        id: &'a str,
    },
    /// It is told of again, after another step that ran at the same time.
    Resumed {
        /// 1-based.
        number: u32,
        /// Of how many.
        total: u32,
    },
    /// It ends, as another step failed.
    Stopped,
    /// The command wrote something.
    Output {
        /// Raw bytes.
        bytes: &'a [u8],
    },
    /// The cache has no result of the step.
    NotCached {
        /// In a few words.
        why: &'a str,
    },
    /// The step's result is taken from the cache.
    Cached,
    /// The step is done.
    Done {
        /// 12 hex digits that name its result: a base's digest, or a sum over that and the instructions since.
        id: &'a str,
    },
    /// Something good to know.
    Note {
        /// In words.
        text: &'a str,
    },
    /// Something that is worth knowing, without harm.
    Warning {
        /// In words.
        text: &'a str,
    },
    /// The image is complete.
    Built {
        /// 12 hex digits of the config's digest.
        id: &'a str,
    },
    /// A tag names the image.
    Tagged {
        /// `host/repository:tag`.
        reference: &'a str,
    },
    /// A step's command failed.
    CommandFailed {
        /// The command as it was run.
        command: &'a str,
        /// Its exit code.
        code: i32,
    },
    /// The build failed.
    Failed {
        /// Why.
        failure: &'a Failure,
        /// The place in the Dockerfile with a caret, where known.
        excerpt: Option<&'a str>,
    },
}

/// Takes what is to be told.
pub trait Log: Send {
    /// Takes one entry. A log that can't be written must not stop the build.
    fn entry(&mut self, entry: Entry<'_>);
}
