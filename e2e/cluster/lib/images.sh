#!/usr/bin/env bash
# Makes the images that every node gets without a registry: pause, coredns, and busybox for tests. Kept beside the programs.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
out=$BIN/images; [ ! -e "$out/done" ] || exit 0
mkdir -p "$out"; work=$(mktemp -d "$BIN/.rootfs.XXXXXX"); trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{pause,dns}
cc -Os -static -s -o "$work/pause/pause" "$HERE/lib/pause.c"
"$HERE/lib/mkimage.sh" kiln-test.local/pause:1 "$work/pause" "$out/pause.tar" '{"Entrypoint":["/pause"],"User":"65535:65535"}'
ln "$BIN/coredns" "$work/dns/coredns"
"$HERE/lib/mkimage.sh" kiln-test.local/coredns:1 "$work/dns" "$out/coredns.tar" '{"Entrypoint":["/coredns"]}'
"$HERE/lib/busybox-root.sh" "$work/busybox"
"$HERE/lib/mkimage.sh" kiln-test.local/busybox:1 "$work/busybox" "$out/busybox.tar" \
  '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]}'
touch "$out/done"
