#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# A fake GPU node, for the tests of the driver's installation: runs a command while SCRATCH/node is a machine that says to have an H100.
#
# Its root is an overlay on ROOT, kept from call to call in SCRATCH, so that neither ROOT nor this machine is changed. The command
# runs next to it, in own mount, process and network namespaces, and reaches it by chroot.
#
# These are fakes:
#   the GPU, in a /sys that has nothing else
#   what /proc says of modules, driver, boot and the kernel's release; the stand-ins for modprobe and reboot write it to SCRATCH/kernel,
#   boot_id and osrelease, and all else leads to the real one
#   the repository of stand-in packages at /srv/nvidia
#
#   gpu_node.sh ROOT SCRATCH REPOSITORY COMMAND [ARGUMENT ...]
set -euo pipefail

usage="usage: gpu_node.sh ROOT SCRATCH REPOSITORY COMMAND [ARGUMENT ...]"
root=${1:?$usage} scratch=${2:?$usage} repository=${3:?$usage}
shift 3
export root scratch repository

# shellcheck disable=SC2016 # the names belong to the inner shell
exec unshare --mount --pid --net --fork --kill-child --propagation private bash -ec '
node=$scratch/node
mkdir -p "$node" "$scratch"/{upper,work}
mount -t overlay -o "lowerdir=$root,upperdir=$scratch/upper,workdir=$scratch/work" node "$node"
mkdir -p "$node/real-proc" "$node/srv/nvidia"
mount -t proc proc "$node/real-proc"
if [ ! -d "$scratch/kernel" ]; then
	mkdir -p "$scratch/kernel/driver" "$scratch/kernel/sys"
	for name in "$node"/real-proc/*; do
		name=${name##*/}
		case $name in modules | driver | sys) ;; *) ln -s "/real-proc/$name" "$scratch/kernel/$name" ;; esac
	done
	: >"$scratch/kernel/modules"
	echo 11111111-2222-3333-4444-555555555555 >"$scratch/boot_id"
	cat /proc/sys/kernel/osrelease >"$scratch/osrelease"
	gpu=$node/sys/bus/pci/devices/0000:07:00.0
	mkdir -p "$gpu"
	echo 0x10de >"$gpu/vendor"
	echo 0x2330 >"$gpu/device"
	echo 0x030200 >"$gpu/class"
fi
mount --bind "$scratch/kernel" "$node/proc"
mount --bind "$node/real-proc/sys" "$node/proc/sys"
mount --bind "$scratch/boot_id" "$node/proc/sys/kernel/random/boot_id"
mount --bind "$scratch/osrelease" "$node/proc/sys/kernel/osrelease"
mount --bind -o ro "$repository" "$node/srv/nvidia"
"$@"' bash "$@"
