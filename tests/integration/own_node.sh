#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a command as on a machine of its own that looks like this one. An overlay on / is the root. /run, /tmp, /dev/shm and podman's
# storage are empty. Process numbers, mounts and IPC are separate. So it can be provisioned while this machine is, too. The project is
# this machine's. PREPARE (a shell command) still has this machine's network, for packages, and so needs ports of its own. COMMAND has
# loopback alone.
# What provisioning puts on this machine is not seen there, whether it is there now or later.
# What was written lies in a new folder below SCRATCH, a real filesystem, and is removed at the end.
# With KEEP_NODE it goes to that folder instead, if the command succeeds. FROM_NODE begins with what lies in such a folder, if it is there.
# That is the same node after a reboot: nothing is mounted, nothing runs. The folder stays as it is, so many nodes can begin with it.
#
#   [KEEP_NODE=FOLDER] [FROM_NODE=FOLDER] own_node.sh SCRATCH PREPARE COMMAND [ARGUMENT ...]
set -euo pipefail

usage="usage: own_node.sh SCRATCH PREPARE COMMAND [ARGUMENT ...]"
base=${1:?$usage} prepare=${2:?$usage} project=$PWD from=${FROM_NODE:-} keep=${KEEP_NODE:-}
shift 2
: "${1:?$usage}"
mkdir -p "$base"
scratch=$(mktemp -d "$base/node.XXXXXX")
trap 'rm -rf -- "$scratch"' EXIT
export scratch prepare project from

# No exec of the command: the shell is process number 1 there and collects orphans.
# shellcheck disable=SC2016 # the names belong to the inner shell
unshare --mount --pid --ipc --fork --kill-child --propagation private bash -ec '
node=$scratch/node
mkdir -p "$node" "$scratch"/{upper,work,containers}
if [ -d "$from" ]; then
    cp -a "$from/upper/." "$scratch/upper/"
    cp -a "$from/containers/." "$scratch/containers/"
else
    python3 - "$scratch/upper" <<"END"
import os, stat, sys
for folder in ("containers.conf.d", "seccomp.d"):
    os.makedirs(f"{sys.argv[1]}/etc/containers/{folder}")
    os.setxattr(f"{sys.argv[1]}/etc/containers/{folder}", "trusted.overlay.opaque", b"y")
with open("/etc/fstab") as lines, open(f"{sys.argv[1]}/etc/fstab", "w") as own:
    own.writelines(line for line in lines if "gpuckpt" not in line)
sbin = (f"usr/local/sbin/{name}" for name in ("criu", "gpuckpt-runc"))
for name in ("etc/criu", "etc/gpuckpt", "opt/gpuckpt", "var/lib/gpuckpt", *sbin):
    os.makedirs(os.path.dirname(f"{sys.argv[1]}/{name}"), exist_ok=True)
    os.mknod(f"{sys.argv[1]}/{name}", stat.S_IFCHR, os.makedev(0, 0))
END
fi
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" node "$node"
mkdir -p "$node/before" "$node/var/lib/containers" "$node$project"
mount -t proc proc "$node/proc"
mount --rbind /sys "$node/sys"
mount --rbind /dev "$node/dev"
mount -t tmpfs shm "$node/dev/shm"
mount -t tmpfs run "$node/run"
mount -t tmpfs -o mode=1777 tmp "$node/tmp"
mkdir -p "$node/run/lock"
mount --bind "$scratch/containers" "$node/var/lib/containers"
mount --bind "$project" "$node$project"
cd "$node"
pivot_root . before
umount --lazy /before
cd "$project"
bash -euo pipefail -c "$prepare"
export GPUCKPT_OWN_NODE=1
unshare --net bash -ec "ip link set lo up; \"\$@\"; exit" bash "$@"
exit' bash "$@"
if [ -n "$keep" ]; then
    rm -rf -- "$keep"
    mkdir -p "$keep"
    mv "$scratch"/{upper,containers} "$keep/"
fi
