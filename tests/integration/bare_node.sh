#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a command as on a node of its own, in own mount, process and network namespaces. ROOT is the lower layer of an overlay that
# becomes the root, /run included, as on a machine that is itself a container. Of networks it has loopback alone. The project is seen
# through an overlay, too, so that nothing of it is written. FOLDERS (colons between them), such as the controller's Python, are seen
# as they are, read-only. What is mounted here is gone when the command has ended; what it wrote lies in SCRATCH.
#
#   bare_node.sh ROOT SCRATCH PROJECT FOLDERS COMMAND [ARGUMENT ...]
set -euo pipefail

usage="usage: bare_node.sh ROOT SCRATCH PROJECT FOLDERS COMMAND [ARGUMENT ...]"
root=${1:?$usage} scratch=${2:?$usage} project=${3:?$usage} folders=${4:?$usage}
shift 4
export root scratch project folders

# shellcheck disable=SC2016 # the names belong to the inner shell
exec unshare --mount --pid --net --fork --kill-child --propagation private bash -ec '
ip link set lo up
node=$scratch/node
mkdir -p "$node" "$scratch"/{root,project}-{upper,work}
mount -t overlay -o "lowerdir=$root,upperdir=$scratch/root-upper,workdir=$scratch/root-work" node "$node"
mount -t proc proc "$node/proc"
mount --rbind /sys "$node/sys"
mount --rbind /dev "$node/dev"
mkdir -p "$node/run/lock" "$node/before" "$node$project"
mount -t overlay -o "lowerdir=$project,upperdir=$scratch/project-upper,workdir=$scratch/project-work" project "$node$project"
for folder in ${folders//:/ }; do
	case $folder in /usr | "$project"/*) continue ;; esac
	mkdir -p "$node$folder"
	mount --bind -o ro "$folder" "$node$folder"
done
cd "$node"
pivot_root . before
umount --lazy /before
cd "$project"
exec "$@"' bash "$@"
