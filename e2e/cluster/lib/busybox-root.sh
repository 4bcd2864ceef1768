#!/usr/bin/env bash
# Makes a root file system with Debian's static busybox and all of its commands. busybox-root.sh DIR
set -euo pipefail
d=$1; mkdir -p "$d"/{bin,sbin,usr/bin,usr/sbin,etc,tmp,root,home,proc,sys,dev,run,var/tmp,var/log}
chmod 1777 "$d/tmp" "$d/var/tmp"; chmod 700 "$d/root"
cp "$(command -v busybox)" "$d/bin/busybox"
for a in $(busybox --list); do [ "$a" = busybox ] || ln -s busybox "$d/bin/$a"; done
printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1::/:/bin/false nobody:x:65534:65534::/:/bin/false > "$d/etc/passwd"
printf '%s\n' root:x:0: daemon:x:1: nobody:x:65534: > "$d/etc/group"
printf '%s\n' 'root:*::0:::::' > "$d/etc/shadow"; chmod 640 "$d/etc/shadow"
