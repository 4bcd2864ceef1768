//! A build's source in git: `kiln-git` checks it out, with the credentials of the source's Secret.

use kiln_contract::source::{Fetched, Git, Transport};
use kiln_git::{Access, Ssh};

use crate::Places;
use crate::error::Fault;
use crate::secrets::Secrets;

/// Fetches a commit.
///
/// # Errors
/// It can't be had, or breaks a rule.
pub fn fetch(source: &Git, secrets: &Secrets, places: &Places) -> Result<Fetched, Fault> {
    let transport = source.check().map_err(|text| Fault::invalid(format!("spec.source.git: {text}")))?;
    let mut access = access(transport, secrets)?;
    access.add(&places.network);
    let revision = kiln_git::fetch(source, &access, &places.tree, &places.work)
        .map_err(|fault| Fault::of_git(fault, access.authorization.is_some()))?;
    Ok(Fetched { revision, digest: None })
}

/// What the Secret lets git do.
fn access(transport: Transport, secrets: &Secrets) -> Result<Access, Fault> {
    let authorization = secrets.authorization()?.map(|authorization| authorization.header());
    if transport == Transport::Http && authorization.is_some() {
        return Err(Fault::invalid("spec.source.git: credentials go over https or ssh only"));
    }
    // Submodules may be on ssh though the repository is not.
    let ssh = if transport == Transport::Ssh || secrets.ssh().is_ok() {
        let (key, hosts) = secrets.ssh()?;
        Ssh::Key { key, hosts }
    } else {
        Ssh::No
    };
    let authorities = secrets.authorities().map(<[u8]>::to_vec);
    Ok(Access { authorization, authorities, ssh, log: true, ..Access::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_never_go_in_the_clear_and_ssh_needs_a_key() {
        let secrets = Secrets::of(&[("username", "u"), ("password", "p")]).expect("fine");
        let found = access(Transport::Https, &secrets).expect("fine");
        assert_eq!(found.authorization.as_deref(), Some("Basic dTpw"));
        assert!(matches!(found.ssh, Ssh::No), "without a key there is no ssh");
        assert!(access(Transport::Http, &secrets).is_err());
        assert!(access(Transport::Ssh, &Secrets::default()).is_err());
        let secrets = Secrets::of(&[("identity", "K"), ("known_hosts", "h k")]).expect("fine");
        for transport in [Transport::Ssh, Transport::Https] {
            assert!(
                matches!(access(transport, &secrets).expect("fine").ssh, Ssh::Key { .. }),
                "{transport:?}"
            );
        }
    }
}
