# Sourced by every script here: where things lie, the addresses, and a few helpers. Nothing is started by sourcing it.
# shellcheck shell=bash disable=SC2034
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kiln/cluster
# The state directory may not lie below /run or /var/lib: every node mounts its own directory over those.
STATE=${KILN_CLUSTER_STATE:-$CACHE/state-$(printf %s "$HERE" | cksum | cut -d' ' -f1)}
# Binaries are keyed by everything that decides their content: module versions, sums, and the build recipe.
BIN=$CACHE/bin-$(cat "$HERE"/tools/*/go.mod "$HERE"/tools/*/go.sum "$HERE/build" | sha256sum | cut -c1-12)
PKI=$STATE/pki LOG=$STATE/log IMAGES=$STATE/images
ADMIN=$PKI/admin.kubeconfig

NODES=${NODES:-1}                                     # how many kubelets
CP_IP=10.89.0.1 NODE_NET=10.89.0                      # node i has NODE_NET.1i and pods 10.244.i.0/24
POD_CIDR=10.244.0.0/16 SVC_CIDR=10.96.0.0/16 API_SVC_IP=10.96.0.1 DNS_IP=10.96.0.10
SLIRP_DNS=10.0.2.3                                    # slirp4netns answers DNS there
REGISTRY=registry.kiln-test.svc.cluster.local:5000
REGISTRY_AUTH=registry-auth.kiln-test.svc.cluster.local:5000
PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export HERE CACHE STATE BIN PKI LOG IMAGES ADMIN NODES CP_IP NODE_NET POD_CIDR SVC_CIDR API_SVC_IP DNS_IP SLIRP_DNS
export REGISTRY REGISTRY_AUTH PATH

die() { echo "e2e/cluster: $*" >&2; exit 1; }
