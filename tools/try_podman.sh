#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Checkpoints and restores small programs in containers, with podman as provision.yml set it up on this node. So faults show
# before a server is tried that takes a minute to start. Says for each what it did, or shows what CRIU's log has to say.
#
#   tools/try_podman.sh VARIANT...
#
#   plain             a Python program with sockets and files
#   cuda              one that holds GPU memory, and checks it in each turn
#   cuda-privileged   the same with --privileged
#
# Environment:
#
#   ROOTFS     root of the containers (/mnt/gpuckpt-rootfs)
#   PYTHON     the interpreter in the container
#   SWITCHES   CRIU_* settings of a lane, one a word
#   LIMIT_S    seconds for a start, a checkpoint and a restore each (60)
#   OUT        a folder for CRIU's logs
set -euo pipefail

name=gpuckpt-try-podman
rootfs=${ROOTFS:-/mnt/gpuckpt-rootfs}
python=${PYTHON:-${GPUCKPT_NODE_PYTHON:-/usr/bin/python3}}
limit=${LIMIT_S:-60}
out=${OUT:-/var/tmp/gpuckpt-try-podman}
profile=/etc/containers/seccomp.d/no-io-uring.json
settings=/run/gpuckpt/criu.env
readonly name rootfs python limit out profile settings

plain_program='
import os, socket, time
server = socket.socket(socket.AF_UNIX)
server.bind("/tmp/try.sock")
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("/tmp/try.sock")
peer = server.accept()[0]
gone = open("/tmp/gone", "w+")
os.unlink("/tmp/gone")
turn = 0
while True:
    turn += 1
    client.send(b"x")
    assert peer.recv(1) == b"x"
    gone.write("x")
    print("turn", turn, flush=True)
    time.sleep(0.1)
'
cuda_program='
import time, torch
held = torch.arange(1 << 26, device="cuda", dtype=torch.int64)
want = int(held.sum())
turn = 0
while True:
    turn += 1
    assert int((held + turn).sum()) == want + turn * held.numel()
    print("turn", turn, flush=True)
    time.sleep(0.1)
'
readonly plain_program cuda_program

say() { printf '==> %s: %s\n' "$(date +%T)" "$*"; }

turns() { podman logs "$name" 2>&1 | sed -n 's/^turn //p' | tail -n 1; }

# Waits until the program has taken more turns than $1.
wait_for_turn() {
	local begun=$SECONDS
	until [ "$(turns)" -gt "$1" ] 2>/dev/null; do
		if [ $((SECONDS - begun)) -ge "$limit" ] || [ "$(podman inspect --format '{{.State.Running}}' "$name")" != true ]; then
			say "no turn after $1; the program said:"
			podman logs --tail 15 "$name" 2>&1 || true
			return 1
		fi
		sleep 0.2
	done
}

# Shows why CRIU failed, and keeps its logs.
explain() {
	local variant=$1 action=$2 folder
	folder=$(podman inspect --format '{{.StaticDir}}' "$name")
	cp "$folder/$action.log" "$out/$variant-$action.log" 2>/dev/null || {
		say "there is no $folder/$action.log: podman or runc failed before CRIU began"
		return 0
	}
	say "$out/$variant-$action.log has:"
	grep -nE 'Error|Warn|cuda' "$out/$variant-$action.log" | tail -n 25 || true
	tail -n 5 "$out/$variant-$action.log"
}

container_options() {
	local folder
	printf '%s\n' --network=host "--security-opt=seccomp=$profile" --label=io.gpuckpt.managed=true
	for folder in /tmp /run /var/tmp; do printf '%s\n' "--tmpfs=$folder:rw,nosuid,nodev,exec,notmpcopyup"; done
	case $1 in plain) return ;; cuda-privileged) printf '%s\n' --privileged ;; esac
	find /dev -maxdepth 1 -name 'nvidia*' -type c -printf '--device=%p\n'
	if mountpoint --quiet /usr/local/nvidia; then printf '%s\n' --volume=/usr/local/nvidia:/usr/local/nvidia:ro; fi
}

try() {
	local variant=$1 program options before begun
	case $variant in plain) program=$plain_program ;; *) program=$cuda_program ;; esac
	mapfile -t options < <(container_options "$variant")
	podman rm --force --time 0 "$name" >/dev/null 2>&1 || true
	timeout "$limit" podman run --detach --name "$name" "${options[@]}" --rootfs "$rootfs" "$python" -c "$program" >/dev/null || return 1
	wait_for_turn 3 || return 1
	begun=$(date +%s%N)
	timeout "$limit" podman container checkpoint --keep "$name" >/dev/null || { explain "$variant" dump; return 1; }
	say "$variant: checkpoint took $((($(date +%s%N) - begun) / 1000000)) ms"
	before=$(turns)
	begun=$(date +%s%N)
	timeout "$limit" podman container restore --keep "$name" >/dev/null || { explain "$variant" restore; return 1; }
	wait_for_turn "$before" || { explain "$variant" restore; return 1; }
	say "$variant: running again after $((($(date +%s%N) - begun) / 1000000)) ms, turn $before went on to $(turns)"
}

[ $# -gt 0 ] || { sed -n '3,15s/^# \{0,1\}//p' "$0"; exit 2; }
for variant in "$@"; do
	case $variant in
	plain | cuda | cuda-privileged) ;;
	*)
		printf 'try_podman.sh: no variant %s; run it without arguments for the list\n' "$variant" >&2
		exit 2
		;;
	esac
done
mkdir -p "$out" "$(dirname "$settings")"
trap 'podman rm --force --time 0 "$name" >/dev/null 2>&1 || true; [ -z "${SWITCHES:-}" ] || rm -f "$settings"' EXIT
# shellcheck disable=SC2086 # a list of settings
[ -z "${SWITCHES:-}" ] || printf '%s\n' $SWITCHES >"$settings"
failed=()
for variant in "$@"; do try "$variant" || failed+=("$variant"); done
[ ${#failed[@]} -eq 0 ] || { say "failed: ${failed[*]}"; exit 1; }
