//! The words that STOPSIGNAL takes (Linux; Docker `signal.ParseSignal`).

const NAMES: [&str; 33] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
];
/// Real-time signals: `RTMIN`, `RTMIN+1`…, `RTMAX-1`, `RTMAX`; half of the 31 is counted from each end.
const REAL_TIME: u32 = 15;

/// Whether `word` names a signal: a number other than 0, or a name with or without `SIG`, in any case.
pub(super) fn is_signal(word: &str) -> bool {
    if let Ok(number) = word.parse::<i32>() {
        return number != 0;
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let counted = |rest: &str, sign: char, most: u32| {
        rest.is_empty()
            || rest
                .strip_prefix(sign)
                .and_then(|n| n.parse::<u32>().ok())
                .is_some_and(|n| (1..=most).contains(&n))
    };
    NAMES.contains(&name)
        || name == "XFSZ"
        || name.strip_prefix("RTMIN").is_some_and(|rest| counted(rest, '+', REAL_TIME))
        || name.strip_prefix("RTMAX").is_some_and(|rest| counted(rest, '-', REAL_TIME - 1))
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn signals() {
        for good in ["9", "SIGTERM", "term", "SigQuit", "RTMIN+3", "SIGRTMAX-14", "RTMAX", "XFSZ"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "SIGNOPE", "RTMIN+16", "RTMIN-1", "RTMAX-15", "TERM "] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
