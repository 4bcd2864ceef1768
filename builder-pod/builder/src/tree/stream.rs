//! Events over a pipe: a build context belongs to a user whose files the helper can't read, so the builder's side walks it
//! and the helper's side writes.
//!
//! Each event is a little-endian u32 length, that many bytes (a tag, then its fields, byte strings with a u32 length), and
//! for a file its content. Both ends are this program, of one version; the reader checks all the same.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use sha2::{Digest as _, Sha256};

use super::TreeError;
use super::at::{MAX_PATH, Meta};
use super::events::{Content, Event, Sink, Why};
use crate::engine::Owner;

/// Longest event: a name, a link's target, attributes and lengths.
const MAX_EVENT: usize = 2 * MAX_PATH + 1024;

/// Writes events; [`Event::End`] is needed at the end.
pub(super) struct StreamWriter {
    out: BufWriter<File>,
}

impl StreamWriter {
    /// To a pipe.
    pub fn new(out: File) -> Self {
        // 256 KiB: small files go together.
        Self { out: BufWriter::with_capacity(256 << 10, out) }
    }

    /// Writes what is still held.
    pub fn finish(mut self) -> Result<(), TreeError> {
        self.event(&Event::End, Content::None)?;
        self.out.flush().map_err(|e| TreeError::io("sending", "", e))
    }
}

impl Sink for StreamWriter {
    fn event(&mut self, event: &Event, content: Content<'_>) -> Result<(), TreeError> {
        let bytes = encode(event);
        let failed = |e: io::Error| TreeError::io("sending", "", e);
        let length = u32::try_from(bytes.len()).map_err(|e| failed(io::Error::other(e)))?;
        self.out
            .write_all(&length.to_le_bytes())
            .and_then(|()| self.out.write_all(&bytes))
            .map_err(failed)?;
        let Event::File { name, size, .. } = event else { return Ok(()) };
        let sent = match content {
            Content::File(file) => io::copy(&mut file.take(*size), &mut self.out),
            Content::Stream(stream) => io::copy(&mut stream.take(*size), &mut self.out),
            Content::None => Ok(0),
        };
        let sent = sent.map_err(|e| TreeError::io("sending", name, e))?;
        if sent != *size {
            let name = String::from_utf8_lossy(name);
            return Err(TreeError::user(format!(
                "{name:?} had {size} bytes and then {sent}: the build context changed while it was read"
            )));
        }
        Ok(())
    }
}

/// Hashes events as [`StreamWriter`] writes them, but without times.
#[derive(Default)]
pub(super) struct Summer {
    sum: Sha256,
    buffer: Vec<u8>,
}

impl Summer {
    /// The digest, in hexadecimal digits.
    pub fn finish(self) -> String {
        hex::encode(self.sum.finalize())
    }
}

impl Sink for Summer {
    fn event(&mut self, event: &Event, content: Content<'_>) -> Result<(), TreeError> {
        let mut event = event.clone();
        if let Event::Source { directory: Some(meta), .. }
        | Event::Directory { meta, .. }
        | Event::File { meta, .. }
        | Event::Symlink { meta, .. }
        | Event::Fifo { meta, .. } = &mut event
        {
            meta.mtime = (0, 0);
        }
        let bytes = encode(&event);
        self.sum.update((bytes.len() as u64).to_le_bytes());
        self.sum.update(&bytes);
        let Event::File { name, size, .. } = &event else { return Ok(()) };
        let from: &mut dyn Read = match content {
            Content::File(file) => file,
            Content::Stream(stream) => stream,
            Content::None => &mut io::empty(),
        };
        self.buffer.resize(256 << 10, 0);
        let mut left = *size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = from.read(&mut self.buffer[..most]).map_err(|e| TreeError::io("reading", name, e))?;
            if read == 0 {
                let name = String::from_utf8_lossy(name);
                return Err(TreeError::user(format!("{name:?} became shorter while it was read")));
            }
            self.sum.update(&self.buffer[..read]);
            left -= read as u64;
        }
        Ok(())
    }
}

/// Reads events up to [`Event::End`] and hands them on.
pub(super) fn read_stream(input: File, sink: &mut dyn Sink) -> Result<(), TreeError> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let failed = |e: io::Error| {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            return TreeError::Internal { message: "the stream of files ended before its end".into() };
        }
        TreeError::io("receiving", "", e)
    };
    loop {
        let mut length = [0u8; 4];
        input.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_EVENT {
            let message = format!("an event of {length} bytes; at most {MAX_EVENT} are allowed");
            return Err(TreeError::Internal { message });
        }
        let mut bytes = vec![0; length];
        input.read_exact(&mut bytes).map_err(failed)?;
        let event = decode(&bytes)
            .ok_or_else(|| TreeError::Internal { message: "an event is malformed".to_owned() })?;
        match &event {
            Event::End => return Ok(()),
            Event::File { size, .. } => {
                let mut content = (&mut input).take(*size);
                sink.event(&event, Content::Stream(&mut content))?;
                // What the sink left of it.
                io::copy(&mut content, &mut io::sink()).map_err(failed)?;
                if content.limit() > 0 {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            event => sink.event(event, Content::None)?,
        }
    }
}

fn encode(event: &Event) -> Vec<u8> {
    let mut to = Vec::with_capacity(128);
    match event {
        Event::Source { name, directory } => {
            to.push(0);
            put(&mut to, name);
            to.push(u8::from(directory.is_some()));
            if let Some(meta) = directory {
                put_meta(&mut to, meta);
            }
        }
        Event::Directory { name, meta, why } => {
            to.push(1);
            put(&mut to, name);
            put_meta(&mut to, meta);
            to.push(u8::from(*why == Why::Chosen));
        }
        Event::Leave => to.push(2),
        Event::File { name, meta, size, link } => {
            to.push(3);
            put(&mut to, name);
            put_meta(&mut to, meta);
            to.extend(size.to_le_bytes());
            to.push(u8::from(link.is_some()));
            to.extend(link.unwrap_or_default().to_le_bytes());
        }
        Event::Hardlink { name, link } => {
            to.push(4);
            put(&mut to, name);
            to.extend(link.to_le_bytes());
        }
        Event::Symlink { name, meta, target } => {
            to.push(5);
            put(&mut to, name);
            put_meta(&mut to, meta);
            put(&mut to, target);
        }
        Event::Fifo { name, meta } => {
            to.push(6);
            put(&mut to, name);
            put_meta(&mut to, meta);
        }
        Event::End => to.push(7),
    }
    to
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    // Names and targets are at most 4096 bytes long; what is not would be cut by `decode`'s checks, not here.
    to.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend(bytes);
}

fn put_meta(to: &mut Vec<u8>, meta: &Meta) {
    to.extend(meta.mode.to_le_bytes());
    to.extend(meta.owner.uid.to_le_bytes());
    to.extend(meta.owner.gid.to_le_bytes());
    to.extend(meta.mtime.0.to_le_bytes());
    to.extend(meta.mtime.1.to_le_bytes());
    put(to, meta.capability.as_deref().unwrap_or_default());
}

/// `None` for what [`encode`] would not write.
fn decode(bytes: &[u8]) -> Option<Event> {
    let (tag, from) = bytes.split_first()?;
    let mut from = Fields(from);
    let event = match tag {
        0 => Event::Source {
            name: from.name()?,
            directory: if from.flag()? { Some(from.meta()?) } else { None },
        },
        1 => Event::Directory {
            name: from.name()?,
            meta: from.meta()?,
            why: if from.flag()? { Why::Chosen } else { Why::Parent },
        },
        2 => Event::Leave,
        3 => Event::File {
            name: from.name()?,
            meta: from.meta()?,
            size: from.u64()?,
            link: {
                let some = from.flag()?;
                Some(from.u64()?).filter(|_| some)
            },
        },
        4 => Event::Hardlink { name: from.name()?, link: from.u64()? },
        5 => Event::Symlink { name: from.name()?, meta: from.meta()?, target: from.bytes()? },
        6 => Event::Fifo { name: from.name()?, meta: from.meta()? },
        7 => Event::End,
        _ => return None,
    };
    from.0.is_empty().then_some(event)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*value)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        let [value] = self.take()?;
        (value < 2).then_some(value == 1)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.u32()? as usize;
        let (value, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(value.to_vec())
    }

    /// A single component, or nothing: whoever writes the stream never chooses a directory with it.
    fn name(&mut self) -> Option<Vec<u8>> {
        let name = self.bytes()?;
        (name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)).then_some(name)
    }

    fn meta(&mut self) -> Option<Meta> {
        let mode = self.u32()? & 0o7777;
        let owner = Owner { uid: self.u32()?, gid: self.u32()? };
        let mtime = (self.u64()?.cast_signed(), self.u32()?);
        let capability = Some(self.bytes()?).filter(|value| !value.is_empty());
        (mtime.1 < 1_000_000_000).then_some(Meta { mode, owner, mtime, capability })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta() -> impl Strategy<Value = Meta> {
        (
            0u32..0o10000,
            any::<(u32, u32)>(),
            any::<i64>(),
            0u32..1_000_000_000,
            prop::collection::vec(any::<u8>(), 0..30),
        )
            .prop_map(|(mode, (uid, gid), seconds, nanos, capability)| Meta {
                mode,
                owner: Owner { uid, gid },
                mtime: (seconds, nanos),
                capability: Some(capability).filter(|value| !value.is_empty()),
            })
    }

    proptest! {
        #[test]
        fn an_event_survives_the_pipe(name in "[^/\0]{0,40}", meta in meta(), size: u64, link: Option<u64>, target: Vec<u8>) {
            prop_assume!(name != "." && name != "..");
            let name = name.into_bytes();
            for event in [
                Event::Source { name: name.clone(), directory: None },
                Event::Source { name: name.clone(), directory: Some(meta.clone()) },
                Event::Directory { name: name.clone(), meta: meta.clone(), why: Why::Parent },
                Event::Leave,
                Event::File { name: name.clone(), meta: meta.clone(), size, link },
                Event::Hardlink { name: name.clone(), link: size },
                Event::Symlink { name: name.clone(), meta: meta.clone(), target: target.clone() },
                Event::Fifo { name: name.clone(), meta: meta.clone() },
                Event::End,
            ] {
                prop_assert_eq!(decode(&encode(&event)), Some(event));
            }
        }

        #[test]
        fn any_bytes_are_an_event_or_none(bytes: Vec<u8>) {
            if let Some(event) = decode(&bytes) {
                prop_assert!(decode(&encode(&event)).is_some());
            }
        }
    }

    #[test]
    fn a_name_is_one_component() {
        for name in [&b".."[..], b".", b"a/b", b"a\0b"] {
            let event = Event::Hardlink { name: name.to_vec(), link: 0 };
            assert_eq!(decode(&encode(&event)), None, "{name:?}");
        }
    }
}
