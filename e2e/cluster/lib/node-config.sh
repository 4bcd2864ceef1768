# Sourced by node.sh: writes the configuration files of CNI, containerd, kubelet and kube-proxy into $dir.
# shellcheck shell=bash disable=SC2154
cat > "$dir/cni/10-bridge.conflist" << C
{"cniVersion": "1.0.0", "name": "kiln-e2e", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni-ipam"}}]}
C

# Nodes know the registries' names from /etc/hosts; these files only say that they speak plain HTTP.
for r in "$REGISTRY" "$REGISTRY_AUTH"; do
  mkdir -p "$dir/certs.d/$r"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$r" "$r" > "$dir/certs.d/$r/hosts.toml"
done

# The opt plugin would make /opt/containerd on the machine. restrict_oom_score_adj: root without CAP_SYS_RESOURCE may not lower it, and pause containers ask for that.
cat > "$dir/containerd.toml" << C
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "kiln-test.local/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "$dir/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["${CNI_BIN:-/usr/lib/cni}"]
  conf_dir = "$dir/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = "$BIN/runc"
    SystemdCgroup = false
C

# NeverVerify: otherwise a preloaded image is pulled anew once the same digest was pulled under another name.
cat > "$dir/kubelet.yaml" << C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$PKI/ca.crt"}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: ["$DNS_IP"]
clusterDomain: cluster.local
resolvConf: "$dir/resolv.conf"
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
maxPods: 110
nodeStatusReportFrequency: 10s
nodeStatusUpdateFrequency: 2s
volumePluginDir: /var/lib/kubelet/volumeplugins
imagePullCredentialsVerificationPolicy: NeverVerify
C

cat > "$dir/proxy.yaml" << C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: "$PKI/proxy.kubeconfig"}
mode: nftables
clusterCIDR: $POD_CIDR
hostnameOverride: $name
conntrack: {maxPerCore: 0, min: 0}
C
