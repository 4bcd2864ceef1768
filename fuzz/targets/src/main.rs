//! A small mutator for stable toolchains: runs the fuzz targets over changed seeds for a while. It learns nothing; what it
//! adds to cargo-fuzz is that it runs everywhere, and that it looks for inputs that are slow for their length.

mod mutate;

use std::collections::BTreeMap;
use std::io::{Seek as _, Write as _};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use cpu_time::ThreadTime;
use kiln_fuzz::{TARGETS, Target};

/// Longest input that is grown on purpose.
const LONGEST: usize = 1 << 20;
/// What one reading of an input may take for each megabyte, or for the part of one that it is. As the tests are built, with
/// little or no optimisation, code takes longer.
const PER_MEGABYTE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 400 } else { 100 });
/// After this long an input hangs.
const HANGS: Duration = Duration::from_secs(30);
/// From this length on, time for length means something.
const MEASURED: usize = 16 << 10;

#[derive(Parser)]
#[command(about = "Runs the fuzz targets over changed seeds")]
struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Which of what is possible is tried.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder with a folder of seeds for each target.
    #[arg(long, default_value = "fuzz/seeds")]
    seeds: PathBuf,
    /// Where inputs that failed are put.
    #[arg(long, default_value = "target/fuzz")]
    out: PathBuf,
    /// Runs the one target over these files and nothing else.
    #[arg(long, num_args = 1.., requires = "target")]
    file: Vec<PathBuf>,
    /// A target; without one all run, one after the other.
    target: Option<String>,
}

/// The input that is being tried is in this file since this moment; `None` between inputs.
static TRIED: Mutex<Option<(Instant, PathBuf)>> = Mutex::new(None);

fn set_tried(input: Option<(Instant, PathBuf)>) {
    *TRIED.lock().unwrap_or_else(PoisonError::into_inner) = input;
}

/// What became of an input.
enum Outcome {
    Fine(Duration),
    Panicked,
}

fn attempt(target: &Target, input: &[u8]) -> Outcome {
    // How busy the machine is does not show in it.
    let began = ThreadTime::now();
    match catch_unwind(|| (target.run)(input)) {
        Ok(()) => Outcome::Fine(began.elapsed()),
        Err(_) => Outcome::Panicked,
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let chosen: Vec<Target> =
        TARGETS.into_iter().filter(|t| args.target.as_deref().is_none_or(|name| name == t.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|t| t.name).collect();
        bail!("expected a target, one of {}, found {:?}", names.join(", "), args.target);
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    watch();
    let mut failed = 0;
    for target in &chosen {
        let fine = if args.file.is_empty() { fuzz(target, &args)? } else { replay(target, &args.file)? };
        failed += usize::from(!fine);
    }
    // In the words that scripts/count-results counts.
    println!(
        "test result: {}. {} passed; {failed} failed; 0 ignored",
        if failed > 0 { "FAILED" } else { "ok" },
        chosen.len() - failed
    );
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn replay(target: &Target, files: &[PathBuf]) -> anyhow::Result<bool> {
    let mut fine = true;
    for file in files {
        let input = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        match attempt(target, &input) {
            Outcome::Fine(took) => println!("{}: {} bytes in {took:?}", file.display(), input.len()),
            Outcome::Panicked => fine = false,
        }
    }
    Ok(fine)
}

/// Ends the process when an input hangs: there is no other way out of it. The input is in the file already.
fn watch() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((since, input)) = tried.as_ref().filter(|(since, _)| since.elapsed() > HANGS) {
                eprintln!("an input takes {:.0?} and more: {}", since.elapsed(), input.display());
                std::process::exit(2);
            }
        }
    });
}

fn fuzz(target: &Target, args: &Args) -> anyhow::Result<bool> {
    let seeds = read_seeds(&args.seeds.join(target.name))?;
    let start = Instant::now();
    // The input is in a file before it is tried, so that one that overflows the stack can be found.
    let current = args.out.join(format!("{}.input", target.name));
    let mut file =
        std::fs::File::create(&current).with_context(|| format!("making {}", current.display()))?;
    let mut random = fastrand::Rng::with_seed(args.seed);
    let (mut tried, mut fine) = (0u64, true);
    let mut slowest: Option<(f64, usize, Duration)> = None;
    let mut kept: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut queue = seeds.iter().cloned();
    while start.elapsed().as_secs_f64() < args.seconds {
        // Every seed once as it is, then changed ones.
        let input = match queue.next() {
            Some(seed) => seed,
            None => mutate::input(&mut random, &seeds, target.words, LONGEST),
        };
        file.rewind()
            .and_then(|()| file.write_all(&input))
            .and_then(|()| file.set_len(input.len() as u64))?;
        tried += 1;
        set_tried(Some((Instant::now(), current.clone())));
        let outcome = attempt(target, &input);
        set_tried(None);
        let mut keep = |why: &'static str| {
            fine = false;
            let number = kept.entry(why).or_default();
            *number += 1;
            let place = args.out.join(format!("{}-{why}-{number}", target.name));
            println!("{}: {why}: {} bytes, kept as {}", target.name, input.len(), place.display());
            // A few of a kind are enough.
            if *number > 5 { Ok(()) } else { std::fs::write(place, &input) }
        };
        match outcome {
            Outcome::Panicked => keep("panicked")?,
            Outcome::Fine(took) => {
                let took = took / target.passes;
                let rate = took.as_secs_f64() * 1000.0 / (input.len() as f64 / LONGEST as f64);
                if input.len() >= MEASURED && slowest.is_none_or(|(most, ..)| rate > most) {
                    slowest = Some((rate, input.len(), took));
                    std::fs::write(args.out.join(format!("{}.slowest", target.name)), &input)?;
                }
                let allowed = PER_MEGABYTE.mul_f64((input.len() as f64 / LONGEST as f64).max(1.0));
                if took > allowed {
                    keep("slow")?;
                }
            }
        }
    }
    let _ = std::fs::remove_file(&current);
    let slowest = slowest.map_or("none was long enough to measure".to_owned(), |(rate, length, took)| {
        format!("slowest {rate:.0} ms/MB each reading ({length} bytes in {took:.1?})")
    });
    println!(
        "{}: {tried} inputs from {} seeds in {:.1?}, {slowest}",
        target.name,
        seeds.len(),
        start.elapsed()
    );
    Ok(fine)
}

fn read_seeds(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let list = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = list.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    // In an order that does not depend on the file system.
    files.sort();
    let seeds = files.iter().map(std::fs::read).collect::<std::io::Result<Vec<_>>>()?;
    if seeds.is_empty() {
        bail!("expected seeds in {}, found none", folder.display());
    }
    Ok(seeds)
}
