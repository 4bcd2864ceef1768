#!/usr/bin/env bash
# One node: own mount, network, uts and cgroup namespace inside the cluster's; containerd, kubelet, kube-proxy.
# node.sh STATE INDEX NODES [second], run by init.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$HERE/lib/cgroup.sh"
trap 'echo "node.sh: line $LINENO failed" >&2' ERR
i=$2 nodes=$3 name=node$2 ip=$NODE_NET.1$2 dir=$STATE/node$2
if [ "${4:-}" != second ]; then
  cg_enter "$name" > /dev/null
  exec unshare --cgroup bash "$0" "$1" "$2" "$3" second
fi

hostname "$name"
mount --make-rshared /
cg_remount
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/containerd
mkdir -p "$dir"/{varlib/kubelet/seccomp,varlib/containerd,varlib/cni,log/pods,log/containers,certs.d,cni,sysctl}

# The kubelet writes these sysctls, and they are the machine's: it gets files of its own instead. A covered procfs no
# longer counts as fully visible, and then pods with user namespaces may not mount /proc; so a second one stays mounted.
mkdir -p /run/proc; mount -t proc proc /run/proc
for kv in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
          kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$dir/sysctl/$(tr / _ <<< "${kv%=*}"); echo "${kv#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${kv%=*}"
done
# Standard paths for kubelet and containerd, without touching the machine's.
mount --bind "$dir/varlib" /var/lib; mount --make-rshared /var/lib
mount --bind "$dir/log" /var/log

if [ -n "$(cat "$STATE/egress")" ]; then echo "nameserver $SLIRP_DNS"; else echo "nameserver 127.0.0.1"; fi > "$dir/resolv.conf"
echo "options timeout:2 attempts:2" >> "$dir/resolv.conf"
bind_file "$dir/resolv.conf" /etc/resolv.conf

until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip link set lo up; ip addr add "$ip/24" dev eth0; ip link set eth0 up; ip route add default via "$CP_IP"
for j in $(seq "$nodes"); do [ "$j" = "$i" ] || ip route add "10.244.$j.0/24" via "$NODE_NET.1$j"; done
sysctl -qw net.ipv4.ip_forward=1
sysctl -qw net.bridge.bridge-nf-call-iptables=1

. "$HERE/lib/node-config.sh"

run() { local n=$1; shift; "$@" > "$LOG/$name-$n.log" 2>&1 < /dev/null & }
# What a service manager does for a kubelet: one that died is started again.
respawn() { while :; do "$@" || true; sleep 0.5; done; }
run containerd containerd -c "$dir/containerd.toml"
until ctr version > /dev/null 2>&1; do sleep 0.05; done
for t in "$BIN"/images/*.tar; do    # pinned, or image garbage collection might take them away for good
  ctr -n k8s.io images import --local --label io.cri-containerd.pinned=pinned "$t"
done
until [ -e "$STATE/api-up" ]; do sleep 0.1; done
run kubelet respawn kubelet --config="$dir/kubelet.yaml" --kubeconfig="$PKI/$name.kubeconfig" --node-ip="$ip" --hostname-override="$name" -v=2
run kube-proxy kube-proxy --config="$dir/proxy.yaml"
trap - ERR; set +e
while :; do wait -n || sleep 1; done
