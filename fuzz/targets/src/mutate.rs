//! Changed seeds.

use fastrand::Rng;

/// One input: a seed with a few changes; now and then one that is long, to see what length costs.
pub fn input(random: &mut Rng, seeds: &[Vec<u8>], words: &[&str], longest: usize) -> Vec<u8> {
    let mut input = random.choice(seeds).cloned().unwrap_or_default();
    // Mostly few: what is changed a lot is refused at its beginning.
    let changes = 1 + random.usize(0..4) * random.usize(0..4);
    for _ in 0..changes {
        change(random, &mut input, seeds, words);
    }
    if random.u8(0..40) == 0 {
        grow(random, &mut input, words, longest);
    }
    input
}

/// A piece of `bytes`, a few bytes long as a rule.
fn piece(random: &mut Rng, bytes: &[u8]) -> std::ops::Range<usize> {
    let from = random.usize(0..=bytes.len());
    let most = if random.bool() { 8 } else { 600 };
    from..bytes.len().min(from + random.usize(0..=most))
}

fn change(random: &mut Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
    let at = random.usize(0..=input.len());
    match random.u8(0..9) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.u8(0..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = *random.choice(b"\0\x01\x7f\x80\xff \n/\\$\"'#-0").unwrap_or(&0);
            }
        }
        2 => drop(input.drain(piece(random, input))),
        3 => {
            let copied = input[piece(random, input)].to_vec();
            input.splice(at..at, copied);
        }
        4 => {
            if let Some(other) = random.choice(seeds) {
                let copied = other[piece(random, other)].to_vec();
                input.splice(at..at, copied);
            }
        }
        5 => input.truncate(at),
        6 => {
            // A number becomes another.
            if let Some(digit) = input[at..].iter().position(u8::is_ascii_digit) {
                let end = input[at + digit..].iter().position(|b| !b.is_ascii_digit()).unwrap_or(1);
                let number = match random.u8(0..4) {
                    0 => "0".to_owned(),
                    1 => u64::MAX.to_string(),
                    2 => random.u64(0..10_000).to_string(),
                    _ => (1u64 << random.u8(0..64)).to_string(),
                };
                input.splice(at + digit..at + digit + end, number.bytes());
            }
        }
        _ => {
            let word = random.choice(words).copied().unwrap_or_default();
            input.splice(at..at, word.bytes());
        }
    }
}

/// Repeats a piece of the input, or words, until it is long.
fn grow(random: &mut Rng, input: &mut Vec<u8>, words: &[&str], longest: usize) {
    let goal = longest >> random.u8(0..6);
    let mut unit = Vec::new();
    if random.bool() {
        unit.extend_from_slice(&input[piece(random, input)]);
    }
    for _ in 0..random.u8(0..4) {
        unit.extend(random.choice(words).copied().unwrap_or_default().bytes());
        // Physical lines have a limit of their own.
        if random.u8(0..3) == 0 {
            unit.extend(b"\\\n");
        }
    }
    if unit.is_empty() {
        return;
    }
    let at = random.usize(0..=input.len());
    let times = goal.saturating_sub(input.len()) / unit.len();
    let grown = if random.u8(0..4) == 0 {
        // Each a little different, so that nothing can be remembered.
        let mut grown = Vec::new();
        for n in 0..times {
            grown.extend_from_slice(&unit);
            grown.extend(n.to_string().bytes());
            if grown.len() > goal {
                break;
            }
        }
        grown
    } else {
        unit.repeat(times)
    };
    input.splice(at..at, grown);
}
