# Sourced by every script here: where things lie, the addresses, and a few helpers. Sourcing it starts nothing.
# shellcheck shell=bash disable=SC2034
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kiln/cluster
# The state directory may not lie below /run or /var/lib: every node mounts its own directory over those.
STATE=${KILN_CLUSTER_STATE:-$CACHE/state-$(printf %s "$HERE" | cksum | cut -d' ' -f1)}
# Programs are keyed by everything that decides their content: module versions, sums, and the build recipe.
BIN=$CACHE/bin-$(cat "$HERE"/tools/*/go.mod "$HERE"/tools/*/go.sum "$HERE/build" | sha256sum | cut -c1-12)
PKI=$STATE/pki LOG=$STATE/log ADMIN=$STATE/kubeconfig
CG_NAME=kiln-e2e-$(printf %s "$STATE" | cksum | cut -d' ' -f1)

CP_IP=10.89.0.1 AUTH_IP=10.89.0.2 NODE_NET=10.89.0    # node i has 10.89.0.1i and pods in 10.244.i.0/24
POD_CIDR=10.244.0.0/16 SVC_CIDR=10.96.0.0/16 API_SVC_IP=10.96.0.1 DNS_IP=10.96.0.10
SLIRP_DNS=10.0.2.3                                    # slirp4netns answers DNS there
REGISTRY=registry.kiln-test.svc.cluster.local:5000
REGISTRY_AUTH=registry-auth.kiln-test.svc.cluster.local:5000
PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH

die() { echo "e2e/cluster: $*" >&2; exit 1; }

# True when the caller brought a cluster: then this one is neither started nor used.
user_cluster() { [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$ADMIN" ]; }

# The process whose death ends the cluster. Looked up by command line: `kill -0` also answers for zombies and reused ids.
launcher() {
  local p; p=$(cat "$STATE/pid" 2> /dev/null) || return 1
  grep -qzxF "$STATE" "/proc/$p/cmdline" 2> /dev/null && echo "$p"
}
# PID 1 of the cluster's pid namespace, as seen from here.
init_pid() { local p; p=$(launcher) && p=$(cat "/proc/$p/task/$p/children") && [ -n "$p" ] && echo "${p%% *}"; }

# bind_file FILE TARGET: mounts FILE over TARGET, also where TARGET is a symlink into a /run that is empty by now.
bind_file() {
  local t; t=$(readlink -m "$2"); mkdir -p "$(dirname "$t")"
  [ -e "$t" ] || : > "$t"
  mount --bind "$1" "$t"
}

# need_packages NAME...: installs the Debian packages that are missing and says which.
need_packages() {
  local p missing=()
  command -v dpkg-query > /dev/null || { echo "packages   not Debian: make sure that there is what these bring: $*"; return; }
  for p in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2> /dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "packages   installing ${missing[*]}"
  local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
  { "${apt[@]}" update && DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } \
    < /dev/null > "$CACHE/apt.log" 2>&1 || { tail -5 "$CACHE/apt.log" >&2; die "could not install ${missing[*]}; see $CACHE/apt.log"; }
}
