# Sourced. Gives the cluster, and each node in it, a cgroup of its own that looks like the root from inside.
# cgroup v1 is what runs in CI; the v2 branch follows the kernel's rules but has not been run.
# shellcheck shell=bash
cg_v2() { [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; }

# v2 hands controllers to children one level at a time; some (cpuset in containers, say) may not be ours to hand on.
cg_delegate() {
  local c controllers
  read -ra controllers < /sys/fs/cgroup/cgroup.controllers
  for c in "${controllers[@]}"; do
    echo "+$c" > /sys/fs/cgroup/cgroup.subtree_control 2> /dev/null || echo "cgroup: controller $c can't be delegated" >&2
  done
}

# cg_enter NAME: moves this shell into a new child cgroup in every hierarchy and prints the directories made.
cg_enter() {
  local all ctrl path name dir
  if cg_v2; then
    cg_delegate
    mkdir -p "/sys/fs/cgroup/$1"; echo 0 > "/sys/fs/cgroup/$1/cgroup.procs"; echo "/sys/fs/cgroup/$1"
    return
  fi
  all=$(cat /proc/self/cgroup)          # once: it changes while we move
  while IFS=: read -r _ ctrl path; do
    name=${ctrl#name=}
    if [ -z "$name" ] || [ ! -d "/sys/fs/cgroup/$name" ]; then continue; fi
    dir=/sys/fs/cgroup/$name${path%/}/$1
    mkdir -p "$dir"
    if [[ ,$name, == *,cpuset,* ]]; then    # a new cpuset is empty and admits nobody
      cat "$dir/../cpuset.cpus" > "$dir/cpuset.cpus"; cat "$dir/../cpuset.mems" > "$dir/cpuset.mems"
    fi
    echo 0 > "$dir/cgroup.procs"; echo "$dir"
  done <<< "$all"
}

# cg_remount: in new cgroup and mount namespaces, puts a fresh /sys there whose cgroup root is our own cgroup.
cg_remount() {
  local ctrl; local -A seen=()
  if cg_v2; then
    umount -R -l /sys; mount -t sysfs sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # Only leaves may hold processes once controllers are handed on.
    mkdir -p /sys/fs/cgroup/init; echo 0 > /sys/fs/cgroup/init/cgroup.procs; cg_delegate
    return
  fi
  umount -R -l /sys; mount -t sysfs sysfs /sys; mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while IFS=: read -r _ ctrl _; do
    if [ -z "$ctrl" ] || [ -n "${seen[$ctrl]:-}" ]; then continue; fi
    seen[$ctrl]=1; mkdir "/sys/fs/cgroup/${ctrl#name=}"
    case $ctrl in
      name=*) mount -t cgroup -o "none,$ctrl" cgroup "/sys/fs/cgroup/${ctrl#name=}" ;;
      *) mount -t cgroup -o "$ctrl" cgroup "/sys/fs/cgroup/$ctrl" ;;
    esac
  done < /proc/self/cgroup
}
