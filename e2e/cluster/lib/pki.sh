#!/usr/bin/env bash
# Makes the cluster's CA, certificates and kubeconfigs. pki.sh NODES
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
umask 077; mkdir -p "$PKI"; cd "$PKI"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
cert() { # name, subject, key usage, further extension line
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" | openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out "$1.crt" \
    -extfile <(printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=%s\n%s\n' "$3" "${4:-}")
}
client() { # name, subject: a client certificate and a kubeconfig that carries everything within it
  cert "$1" "$2" clientAuth
  cat > "$1.kubeconfig" << K
apiVersion: v1
kind: Config
clusters: [{name: kiln-e2e, cluster: {server: "https://$CP_IP:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: kiln-e2e, context: {cluster: kiln-e2e, user: $1}}]
current-context: kiln-e2e
K
}

key ca; openssl req -x509 -new -key ca.key -days 365 -subj /CN=kiln-e2e-ca -out ca.crt
cert apiserver /CN=kube-apiserver serverAuth \
  "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$CP_IP,IP:$API_SVC_IP"
client admin /O=system:masters/CN=admin
client kcm /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client proxy /CN=system:kube-proxy
for i in $(seq "$1"); do client "node$i" "/O=system:nodes/CN=system:node:node$i"; done
key sa; openssl pkey -in sa.key -pubout -out sa.pub
cp admin.kubeconfig "$ADMIN"
