//! USER and `--chown`: names looked up in the image's own passwd and group files, never by the machine's libraries.

use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::TreeError;
use super::at;
use super::index;
use crate::engine::{Owner, User};

/// Most bytes of a passwd or group file: BuildKit's limit (executor/oci `maxUserFileBytes`).
const MAX_FILE: u64 = 10 << 20;
/// Largest id: what the step's user namespace has on every node.
const MAX_ID: u32 = 65534;

/// Looks a USER (`name`, `uid`, `name:group`, `uid:gid`…) up in the image's passwd and group files. An empty one is root.
/// The primary group is the first of the supplementary ones, as containerd has it: a step can't drop it to get around a
/// file that denies the group.
///
/// # Errors
/// [`TreeError::User`] for a name that is not there or a number out of range.
pub fn user(root: BorrowedFd<'_>, user: &str) -> Result<User, TreeError> {
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let number = number(name, "USER")?;
    let passwd = passwd(root)?;
    let entry = passwd.iter().find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == name,
    });
    let (uid, mut gid) = match (number, entry) {
        (Some(uid), entry) => (uid, entry.map_or(0, |entry| entry.gid)),
        (None, Some(entry)) => (entry.uid, entry.gid),
        (None, None) => {
            return Err(TreeError::user(format!(
                "unable to find user {name:?}: /etc/passwd of the image has no such entry; create it with RUN before this \
                 step, or use a number"
            )));
        }
    };
    let mut groups = Vec::new();
    if !group.is_empty() {
        gid = match self::number(group, "USER")? {
            Some(gid) => gid,
            None => self::groups(root)?.iter().find(|entry| entry.name == group).map(|entry| entry.gid).ok_or_else(
                || {
                    TreeError::user(format!(
                        "unable to find group {group:?}: /etc/group of the image has no such entry; create it with RUN \
                         before this step, or use a number"
                    ))
                },
            )?,
        };
    } else if let Some(entry) = entry {
        let member = |group: &&Group| group.members.contains(&entry.name);
        groups.extend(self::groups(root)?.iter().filter(member).map(|group| group.gid));
    }
    for id in std::iter::once(uid).chain([gid]).chain(groups.iter().copied()) {
        in_range(id, "USER")?;
    }
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    let home = entry.map(|entry| entry.home.clone()).filter(|home| !home.is_empty());
    Ok(User { owner: Owner { uid, gid }, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
}

/// Looks a `--chown` up: a number alone is user and group, a name brings its primary group. A name that is not there is 0,
/// and a group that is not there changes nothing: so BuildKit answers (conformance `copy-chown-*-no-such`).
///
/// # Errors
/// [`TreeError::User`] for a number out of range.
pub fn owner(root: BorrowedFd<'_>, chown: &str) -> Result<Owner, TreeError> {
    let (user, group) = chown.split_once(':').map_or((chown, None), |(user, group)| (user, Some(group)));
    let mut owner = Owner::default();
    match number(user, "--chown")? {
        Some(uid) => owner = Owner { uid, gid: uid },
        // Everywhere root is 0, whatever the image says (BuildKit llb `parseUID`).
        None if user == "root" || user.is_empty() => {}
        None => {
            if let Some(entry) = passwd(root)?.into_iter().find(|entry| entry.name == user) {
                owner = Owner { uid: entry.uid, gid: entry.gid };
            }
        }
    }
    if let Some(group) = group {
        match number(group, "--chown")? {
            Some(gid) => owner.gid = gid,
            None if group == "root" => owner.gid = 0,
            None => {
                if let Some(entry) = groups(root)?.into_iter().find(|entry| entry.name == group) {
                    owner.gid = entry.gid;
                }
            }
        }
    }
    in_range(owner.uid, "--chown")?;
    in_range(owner.gid, "--chown")?;
    Ok(owner)
}

/// A number, `None` for a name. What looks like a number and is none that can be is refused, so that it can't wrap around
/// to root (CVE-2024-40635).
fn number(text: &str, what: &str) -> Result<Option<u32>, TreeError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(None);
    }
    // A name that starts with a digit (`7zip`) is a name.
    let odd = digits.len() != text.len() || digits.starts_with("0x") || digits.starts_with("0X");
    if !odd && !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match digits.parse::<u32>() {
        Ok(id) if !odd && id <= MAX_ID => Ok(Some(id)),
        _ => Err(out_of_range(text, what)),
    }
}

fn in_range(id: u32, what: &str) -> Result<(), TreeError> {
    if id <= MAX_ID { Ok(()) } else { Err(out_of_range(&id.to_string(), what)) }
}

fn out_of_range(text: &str, what: &str) -> TreeError {
    TreeError::user(format!(
        "{what}: {text:?} is no user or group id that a build can have: use 0 to {MAX_ID}"
    ))
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Lines whose numbers are none are no entries: a damaged line must not make anyone root.
fn passwd(root: BorrowedFd<'_>) -> Result<Vec<Passwd>, TreeError> {
    let text = read(root, "etc/passwd")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            Some(Passwd {
                name: (*fields.first()?).to_owned(),
                uid: fields.get(2)?.trim().parse().ok()?,
                gid: fields.get(3)?.trim().parse().ok()?,
                home: fields.get(5).copied().unwrap_or_default().to_owned(),
            })
        })
        .collect())
}

fn groups(root: BorrowedFd<'_>) -> Result<Vec<Group>, TreeError> {
    let text = read(root, "etc/group")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            Some(Group {
                name: (*fields.first()?).to_owned(),
                gid: fields.get(2)?.trim().parse().ok()?,
                members: fields.get(3).copied().unwrap_or_default().split(',').map(str::to_owned).collect(),
            })
        })
        .collect())
}

/// Reads a file of the image; empty where it is not there.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, TreeError> {
    let failed = |e: Errno| TreeError::io("reading", path, e).of_user();
    // Without NONBLOCK a FIFO would make this wait for ever.
    let file = match at::open_in(root, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if at::kind(&stat) != FileType::RegularFile {
        return Err(TreeError::user(format!("/{path} of the image is not a regular file")));
    }
    index::check_content(&file, path.as_bytes())?;
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(|e| TreeError::io("reading", path, e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(TreeError::user(format!("/{path} of the image has more than {MAX_FILE} bytes")));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
