#!/usr/bin/env bash
# Writes what the control plane reads at start: hosts and resolv.conf files, registry configurations and a password.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cp -L /etc/resolv.conf "$STATE/resolv.machine" 2> /dev/null || : > "$STATE/resolv.machine"
printf 'nameserver %s\noptions timeout:2 attempts:2\n' "$SLIRP_DNS" > "$STATE/resolv.in"
{ cat /etc/hosts; printf '%s\n' "$CP_IP ${REGISTRY%:*}" "$AUTH_IP ${REGISTRY_AUTH%:*}"; } > "$STATE/hosts"

registry() { # name, address, auth section
  mkdir -p "$STATE/$1"
  printf '%s\n' 'version: 0.1' 'log: {level: info}' 'health: {storagedriver: {enabled: false}}' "http: {addr: \"$2:5000\"}" \
    "storage: {filesystem: {rootdirectory: \"$STATE/$1\"}, delete: {enabled: true}, cache: {blobdescriptor: inmemory}}" "$3" > "$STATE/$1.yml"
}
registry registry "$CP_IP" ''
umask 077
openssl rand -hex 12 > "$STATE/registry-auth.password"
# bcrypt is the only hash that the registry takes; perl's crypt has it. The salt's alphabet is ./A-Za-z0-9.
perl -e 'chomp(my $p = <STDIN>); my @a = ("a".."z", "A".."Z", 0..9); print "kiln:", crypt($p, "\$2y\$05\$" . join("", map { $a[rand @a] } 1..21) . "u"), "\n"' \
  < "$STATE/registry-auth.password" > "$STATE/registry-auth.htpasswd"
registry registry-auth "$AUTH_IP" "auth: {htpasswd: {realm: kiln-e2e, path: \"$STATE/registry-auth.htpasswd\"}}"
