//! Removes what the cache keeps beyond an age or a size: results that nobody used for the longest time first. It runs apart from
//! builds (`kiln cache gc`, `kiln-courier cache-gc`), over one repository at a time. What is removed while a build wants it is
//! built again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use kiln_registry::{Client, Error, ImageName, Kept, KeptKind};
use tokio::task::JoinSet;

/// Requests at a time.
const AT_A_TIME: usize = 8;

/// How much may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Since when something may be unused.
    pub max_age: Option<SignedDuration>,
    /// Bytes of layers, each counted once.
    pub max_size: Option<u64>,
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was not used for so long.
    Age,
    /// The rest is used more, and there is no room for all.
    Size,
}

/// What becomes of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// What goes, the longest unused first: which one, when it was used last, and why.
    pub removed: Vec<(Kept, Timestamp, Why)>,
    /// How many artifacts of the cache there were.
    pub all: usize,
    /// Bytes of layers that there were, each counted once.
    pub bytes: u64,
    /// Bytes of layers that stay.
    pub left: u64,
    /// Tags that are none of the cache's.
    pub others: usize,
}

/// What goes of `all`. Something is used when it is made, and when a build ended that wants it: the last one of its name tells.
pub fn choose(all: &[Kept], others: usize, limits: Limits, now: Timestamp) -> Swept {
    // What does not say when it was made is as old as can be.
    let time = |kept: &Kept| kept.created.parse::<Timestamp>().unwrap_or(Timestamp::UNIX_EPOCH).min(now);
    let mut used: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for kept in all {
        let KeptKind::Record(wants) = &kept.kind else { continue };
        for tag in wants {
            let last = used.entry(tag).or_insert(Timestamp::UNIX_EPOCH);
            *last = time(kept).max(*last);
        }
    }
    let last = |kept: &Kept| used.get(kept.tag.as_str()).copied().unwrap_or(time(kept)).max(time(kept));
    let mut order: Vec<(Timestamp, &Kept)> = all.iter().map(|kept| (last(kept), kept)).collect();
    order.sort_by(|a, b| (a.0, &a.1.tag).cmp(&(b.0, &b.1.tag)));
    // Layers are counted by how many keep them.
    let mut layers: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for layer in all.iter().filter_map(|kept| kept.layer.as_ref()) {
        layers.entry(&layer.digest).or_insert((layer.size, 0)).1 += 1;
    }
    let bytes: u64 = layers.values().map(|(size, _)| size).sum();
    let mut left = bytes;
    let mut removed = Vec::new();
    for (used, kept) in order {
        let old = limits.max_age.is_some_and(|most| now.duration_since(used) > most);
        // A record has no layer: taking it away would win nothing.
        let much = kept.layer.is_some() && limits.max_size.is_some_and(|most| left > most);
        let why = match (old, much) {
            (true, _) => Why::Age,
            (false, true) => Why::Size,
            (false, false) => continue,
        };
        if let Some(known) = kept.layer.as_ref().and_then(|layer| layers.get_mut(layer.digest.as_str())) {
            known.1 -= 1;
            left -= if known.1 == 0 { known.0 } else { 0 };
        }
        removed.push((kept.clone(), used, why));
    }
    Swept { removed, all: all.len(), bytes, left, others }
}

/// Looks through a repository, and removes what is beyond the limits, unless it is only to be told.
///
/// # Errors
/// As the registry answered. What was removed until then is gone.
pub async fn sweep(
    client: &Client,
    repository: &ImageName,
    limits: Limits,
    now: Timestamp,
    dry_run: bool,
) -> Result<Swept, Error> {
    let (tags, others) = client.cache_tags(repository).await?;
    let count = tags.len();
    let name = repository.repository_name();
    let found = side_by_side(tags, {
        let client = client.clone();
        move |tag: String| {
            let (client, name) = (client.clone(), format!("{name}:{tag}"));
            async move { client.kept(&ImageName::parse(&name)?).await }
        }
    })
    .await?;
    let all: Vec<Kept> = found.into_iter().flatten().collect();
    let others = others + count - all.len();
    let swept = choose(&all, others, limits, now);
    if dry_run {
        return Ok(swept);
    }
    // Each manifest once, whatever tags it has.
    let mut seen = BTreeSet::new();
    let those = swept.removed.iter().map(|(kept, ..)| kept).filter(|kept| seen.insert(kept.digest.clone()));
    side_by_side(those.cloned().collect(), {
        let (client, repository) = (client.clone(), repository.clone());
        move |kept: Kept| {
            let (client, repository) = (client.clone(), repository.clone());
            async move { client.delete_kept(&repository, &kept).await }
        }
    })
    .await?;
    Ok(swept)
}

/// Does something with each of `items`, so many at a time; ends with the first error.
async fn side_by_side<T, R, F>(
    items: Vec<T>,
    work: impl Fn(T) -> F + Clone + Send + 'static,
) -> Result<Vec<R>, Error>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = Result<R, Error>> + Send,
{
    let todo = Arc::new(Mutex::new(items.into_iter()));
    let mut workers = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (todo, work) = (todo.clone(), work.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let next = todo.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(item) = next else { return Ok(done) };
                done.push(work(item).await?);
            }
        });
    }
    let mut all = Vec::new();
    while let Some(done) = workers.join_next().await {
        let done = done.map_err(|e| Error::Setup { what: "a task".to_owned(), detail: e.to_string() })?;
        all.extend(done?);
    }
    Ok(all)
}

impl Swept {
    /// As a table with a sum below it.
    pub fn shown(&self, repository: &str, now: Timestamp, dry_run: bool) -> String {
        let mut text = String::new();
        if !self.removed.is_empty() {
            let _ = writeln!(text, "{:<12}  {:<6}  {:>10}  {:>10}  WHY", "TAG", "KIND", "SIZE", "UNUSED");
        }
        for (kept, used, why) in &self.removed {
            let kind = match kept.kind {
                KeptKind::Entry => "result",
                KeptKind::Record(_) => "record",
            };
            let size = kept.layer.as_ref().map_or_else(|| "-".to_owned(), |layer| shown_bytes(layer.size));
            let why = match why {
                Why::Age => "age",
                Why::Size => "size",
            };
            let tag = kept.tag.get(..12).unwrap_or(&kept.tag);
            let unused = shown_age(now.duration_since(*used));
            let _ = writeln!(text, "{tag:<12}  {kind:<6}  {size:>10}  {unused:>10}  {why}");
        }
        let word = if dry_run { "would remove" } else { "removed" };
        let (gone, all, others) = (self.removed.len(), self.all, self.others);
        let (before, after) = (shown_bytes(self.bytes), shown_bytes(self.left));
        let _ = writeln!(
            text,
            "{repository}: {word} {gone} of {all}; layers {before} before, {after} after; {others} other tags left alone"
        );
        text
    }
}

fn shown_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut count = bytes as f64;
    while count >= 1024.0 && unit + 1 < units.len() {
        count /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{count:.digits$} {}", units[unit])
}

fn shown_age(age: SignedDuration) -> String {
    match age.as_hours() {
        hours @ ..48 => format!("{hours} h"),
        hours => format!("{} d", hours / 24),
    }
}

/// A duration as Go writes it (`90s`, `36h`, `1h30m`), and days (`14d`).
///
/// # Errors
/// It is none.
pub fn parse_age(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("expected a duration like 14d, 36h or 90m, found '{text}'");
    let (mut seconds, mut digits) = (0i64, String::new());
    for c in text.chars() {
        let factor = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(wrong()),
        };
        let count: i64 = std::mem::take(&mut digits).parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(factor).and_then(|n| n.checked_add(seconds)).ok_or_else(wrong)?;
    }
    if seconds == 0 || !digits.is_empty() {
        return Err(wrong());
    }
    Ok(SignedDuration::from_secs(seconds))
}

/// A number of bytes as Kubernetes writes it: `500M`, `20Gi`; docker's `20GiB` and `20GB`, too.
///
/// # Errors
/// It is none.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size like 20Gi or 500M, found '{text}'");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..end].parse().map_err(|_| wrong())?;
    let unit = text[end..].strip_suffix('B').unwrap_or(&text[end..]);
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(wrong()),
    };
    count.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
