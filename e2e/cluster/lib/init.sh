#!/usr/bin/env bash
# PID 1 of the cluster's namespaces: private /proc /sys /run, network, egress, control plane, registries, nodes.
# When it dies the kernel ends everything else, and with the namespaces go all mounts, links and rules.
# init.sh STATE NODES [second], run by `up`; file descriptor 7 is the machine's network namespace.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$HERE/lib/cgroup.sh"
nodes=$2
trap 'echo "init.sh: line $LINENO failed" >&2' ERR
if [ "${3:-}" != second ]; then
  mount -t proc proc /proc
  cg_enter "$CG_NAME" > "$STATE/cgroups"
  exec unshare --cgroup bash "$0" "$1" "$2" second
fi

began=${EPOCHREALTIME/./}
step() { local us=$((${EPOCHREALTIME/./} - began)); printf '%-10s after %d.%d s\n' "$1" $((us / 1000000)) $((us / 100000 % 10)) >> "$STATE/steps"; }
run() { local n=$1; shift; "$@" > "$LOG/$n.log" 2>&1 < /dev/null 7<&- & }
api_answers() { curl -sf -m 5 --cacert "$PKI/ca.crt" "https://127.0.0.1:6443/$1" > /dev/null; }

cg_remount
mount -t tmpfs -o mode=755 tmpfs /run
bind_file "$STATE/resolv.machine" /etc/resolv.conf
bind_file "$STATE/hosts" /etc/hosts
hostname control-plane
ip link set lo up
ip link add br0 type bridge
ip addr add "$CP_IP/24" dev br0; ip addr add "$AUTH_IP/24" dev br0; ip link set br0 up
sysctl -qw net.ipv4.ip_forward=1

run etcd etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
# Aggregator routing makes the API server call webhooks at pod addresses: there is no kube-proxy in this network namespace.
run apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$CP_IP" --secure-port=6443 \
  --service-cluster-ip-range="$SVC_CIDR" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/sa.pub" \
  --service-account-signing-key-file="$PKI/sa.key" --kubelet-client-certificate="$PKI/admin.crt" \
  --kubelet-client-key="$PKI/admin.key" --kubelet-preferred-address-types=InternalIP \
  --enable-aggregator-routing=true --allow-privileged=true --profiling=false ${APISERVER_FLAGS:-}

# A user-space NAT gives pods a way to package mirrors without any rule on the machine. It needs the machine's network
# namespace but lives in our pid namespace, so that it can't outlive the cluster. Nobody after it gets descriptor 7.
egress=
nsenter --net=/proc/self/fd/7 slirp4netns --configure --mtu=1400 --disable-host-loopback 1 tap0 > "$LOG/slirp4netns.log" 2>&1 < /dev/null &
slirp=$!
exec 7<&-
for _ in $(seq 100); do
  ip route show default | grep -q tap0 && { egress=yes; break; }
  kill -0 "$slirp" 2> /dev/null || break
  sleep 0.05
done
if [ -n "$egress" ] && nft -f - <<< "table ip egress { chain post { type nat hook postrouting priority 100;
    ip saddr { $POD_CIDR, $NODE_NET.0/24 } oifname tap0 masquerade; }; }" 2>> "$LOG/slirp4netns.log"; then
  echo "egress     pods reach what this machine reaches" >> "$STATE/steps"
else
  egress=; echo "egress     none: slirp4netns did not start, see slirp4netns.log; pods reach only the cluster" >> "$STATE/steps"
fi
echo "$egress" > "$STATE/egress"

# Version 3 sends traces to localhost unless told not to.
for r in registry registry-auth; do
  OTEL_TRACES_EXPORTER=none run "$r" registry serve "$STATE/$r.yml"
done

# Nodes start containerd while the API server comes up.
for i in $(seq "$nodes"); do
  unshare --mount --net --uts --propagation private bash "$HERE/lib/node.sh" "$STATE" "$i" "$nodes" > "$LOG/node$i.log" 2>&1 < /dev/null &
  p=$!; echo "$p" > "$STATE/node$i.pid"
  while [ "$(readlink "/proc/$p/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
  ip link add "veth$i" type veth peer name eth0 netns "$p"
  ip link set "veth$i" master br0 up
  ip route add "10.244.$i.0/24" via "$NODE_NET.1$i"
done

until api_answers livez; do sleep 0.1; done
touch "$STATE/api-up"
# The controller manager's default client limit alone would cost 5 s.
run controller-manager kube-controller-manager --kubeconfig="$PKI/kcm.kubeconfig" --leader-elect=false \
  --use-service-account-credentials=true --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" \
  --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" --cluster-cidr="$POD_CIDR" \
  --profiling=false --kube-api-qps=300 --kube-api-burst=600
run scheduler kube-scheduler --kubeconfig="$PKI/scheduler.kubeconfig" --leader-elect=false --profiling=false
until api_answers readyz; do sleep 0.1; done; step "api server"

export KUBECONFIG=$ADMIN
if [ "$nodes" != 0 ]; then
  forward="forward . $SLIRP_DNS"
  sed "s|__DNS_IP__|$DNS_IP|; s|__CP_IP__|$CP_IP|; s|__AUTH_IP__|$AUTH_IP|; s|__FORWARD__|${egress:+$forward}|" "$HERE/lib/addons.yaml" |
    kubectl apply -f - > "$LOG/addons.log" 2>&1
  for i in $(seq "$nodes"); do
    until kubectl get node "node$i" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2> /dev/null | grep -q True; do sleep 0.2; done
    step "node$i"
  done
  kubectl -n kube-system rollout status ds/coredns --timeout=120s > "$LOG/addons-wait.log" 2>&1; step dns
fi
curl -sf -m 5 -o /dev/null "http://$CP_IP:5000/v2/"; step registry
touch "$STATE/ready"
trap - ERR; set +e
while :; do wait -n || sleep 1; done       # as PID 1, bash also reaps orphans such as containerd's shims
