#!/usr/bin/env bash
# Makes a one-layer OCI archive with tar, sha256sum, gzip and jq.
# mkimage.sh REF ROOTFS (directory or tar) OUT.tar [CONFIG_JSON] [plain|gzip]
set -euo pipefail
ref=$1 root=$2 out=$3 config=${4:-'{}'} form=${5:-plain}
work=$(mktemp -d "$(dirname "$out")/.image.XXXXXX"); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/blobs/sha256"

digest() { sha256sum "$1" | cut -d' ' -f1; }
describe() { # FILE MEDIA_TYPE: moves it among the blobs and prints its descriptor
  local d s; d=$(digest "$1"); s=$(stat -c %s "$1"); mv "$1" "$work/blobs/sha256/$d"
  jq -nc --arg t "$2" --arg d "sha256:$d" --argjson s "$s" '{mediaType: $t, digest: $d, size: $s}'
}

layer=$work/layer type=application/vnd.oci.image.layer.v1.tar
if [ -d "$root" ]; then
  tar --numeric-owner --owner=0 --group=0 --mtime=@0 --sort=name -C "$root" -cf "$layer" .
else
  cp "$root" "$layer"
fi
diff_id=sha256:$(digest "$layer")
if [ "$form" = gzip ]; then gzip -n -6 "$layer"; layer=$layer.gz type=$type+gzip; fi
layer=$(describe "$layer" "$type")

jq -nc --argjson c "$config" --arg d "$diff_id" --arg a "$(dpkg --print-architecture 2> /dev/null || echo amd64)" \
  '{architecture: $a, os: "linux", config: $c, rootfs: {type: "layers", diff_ids: [$d]}}' > "$work/config"
config=$(describe "$work/config" application/vnd.oci.image.config.v1+json)
type=application/vnd.oci.image.manifest.v1+json
jq -nc --arg t "$type" --argjson c "$config" --argjson l "$layer" '{schemaVersion: 2, mediaType: $t, config: $c, layers: [$l]}' > "$work/manifest"
manifest=$(describe "$work/manifest" "$type")
jq -nc --argjson m "$manifest" --arg r "$ref" '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
  manifests: [$m + {annotations: {"io.containerd.image.name": $r}}]}' > "$work/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' > "$work/oci-layout"
tar -C "$work" -cf "$out.part" oci-layout index.json blobs
mv "$out.part" "$out"
