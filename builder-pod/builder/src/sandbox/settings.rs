//! What all steps of a build are told alike: host name, further hosts, limits (`docker build --add-host --shm-size --ulimit
//! --network=none`).

use std::net::IpAddr;
use std::str::FromStr;

use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

/// Bytes of `/dev/shm` where nothing else is said: Docker's.
const SHM_BYTES: u64 = 64 << 20;
/// Longest host name (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// Settings of every step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Instead of `buildkitsandbox`.
    pub hostname: Option<String>,
    /// Further lines of `/etc/hosts`.
    pub hosts: Vec<Host>,
    /// Size of `/dev/shm` in bytes.
    pub shm_bytes: Option<u64>,
    /// Limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// No step has a network.
    pub no_network: bool,
}

impl Settings {
    /// Bytes of `/dev/shm`.
    pub fn shm(&self) -> u64 {
        self.shm_bytes.unwrap_or(SHM_BYTES)
    }

    /// What of it may change what a command does, in any words: of further hosts the names alone, as BuildKit has it.
    pub fn alike(&self) -> String {
        let hosts: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        let Self { hostname, shm_bytes, ulimits, no_network, .. } = self;
        format!("{hostname:?} {hosts:?} {shm_bytes:?} {ulimits:?} {no_network}")
    }

    /// Takes a host name, if it is one.
    ///
    /// # Errors
    /// What was expected.
    pub fn set_hostname(&mut self, name: &str) -> Result<(), String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if name.is_empty() || name.len() > MAX_HOSTNAME || !name.bytes().all(fits) {
            return Err(format!("expected a host name of at most {MAX_HOSTNAME} characters, found {name:?}"));
        }
        self.hostname = Some(name.to_owned());
        Ok(())
    }
}

/// A name and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

impl FromStr for Host {
    type Err = String;

    /// `name=address` or, as Docker has it of old, `name:address`.
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("expected NAME=ADDRESS, found {text:?}");
        let (name, address) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(fault)?;
        if name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
            return Err(fault());
        }
        let address = address.trim_start_matches('[').trim_end_matches(']');
        Ok(Self { name: name.to_owned(), address: address.parse().map_err(|_| fault())? })
    }
}

/// A limit of a process, soft and hard; absent: none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    name: String,
    soft: Option<u64>,
    hard: Option<u64>,
}

impl FromStr for Ulimit {
    type Err = String;

    /// `nofile=1024` or `nofile=1024:2048`; `-1` is no limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("expected a limit such as nofile=1024:2048, found {text:?}");
        let (name, values) = text.split_once('=').ok_or_else(fault)?;
        let value = |text: &str| match text {
            "-1" => Ok(None),
            number => number.parse().map(Some).map_err(|_| fault()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Self { name: name.to_owned(), soft: value(soft)?, hard: value(hard)? };
        limit.resource().map(|_| limit).ok_or_else(fault)
    }
}

impl Ulimit {
    fn resource(&self) -> Option<Resource> {
        Some(match self.name.as_str() {
            "core" => Resource::Core,
            "cpu" => Resource::Cpu,
            "data" => Resource::Data,
            "fsize" => Resource::Fsize,
            "locks" => Resource::Locks,
            "memlock" => Resource::Memlock,
            "msgqueue" => Resource::Msgqueue,
            "nice" => Resource::Nice,
            "nofile" => Resource::Nofile,
            "nproc" => Resource::Nproc,
            "rss" => Resource::Rss,
            "rtprio" => Resource::Rtprio,
            "rttime" => Resource::Rttime,
            "sigpending" => Resource::Sigpending,
            "stack" => Resource::Stack,
            _ => return None,
        })
    }

    /// Sets it for this process and those that it becomes.
    ///
    /// # Errors
    /// It is above what the machine allows; in words.
    pub fn apply(&self) -> Result<(), String> {
        let Some(resource) = self.resource() else { return Ok(()) };
        let limit = Rlimit { current: self.soft, maximum: self.hard };
        rustix::process::setrlimit(resource, limit)
            .map_err(|e| format!("the limit {} can't be set: {e}; the machine allows less", self.name))
    }
}

/// Bytes: `134217728`, `128m`, `1g`.
///
/// # Errors
/// What was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let fault = || format!("expected bytes such as 134217728 or 128m, found {text:?}");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b');
    let (number, shift) = match number.strip_suffix(['k', 'm', 'g']) {
        Some(rest) if number.ends_with('k') => (rest, 10),
        Some(rest) if number.ends_with('m') => (rest, 20),
        Some(rest) => (rest, 30),
        None => (number, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0);
    bytes.ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_takes_is_taken() {
        assert_eq!(parse_bytes("134217728"), Ok(128 << 20));
        assert_eq!((parse_bytes("128m"), parse_bytes("1GB")), (Ok(128 << 20), Ok(1 << 30)));
        let limit: Ulimit = "nofile=1062:-1".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(1062), None));
        let host: Host = "a:10.0.0.1".parse().unwrap();
        assert_eq!((host.name.as_str(), host.address.to_string().as_str()), ("a", "10.0.0.1"));
        assert_eq!("b=[::1]".parse::<Host>().map(|host| host.address.is_ipv6()), Ok(true));
        assert!(Settings::default().set_hostname("me").is_ok());
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in ["", "m", "-1", "1t", "0"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bad in ["nofile", "nofile=x", "files=1"] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
        for bad in ["a", "=1.2.3.4", "a b=1.2.3.4", "a=x"] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
        assert!(Settings::default().set_hostname("a b").is_err());
    }
}
