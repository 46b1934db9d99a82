#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs the project on a GPU node that reaches no registry, from a checkout and an offline bundle. Its steps can be given in
# separate calls. What a step has made stays in WORK, and a benchmark that was cut short goes on where it was.
#
#   tools/run_on_node.sh STEP...
#
#   collect     add the parts that lie in BUNDLE to those in WORK (they may arrive a few at a time)
#   look        show what the node is: GPU, driver, memory, libraries
#   setup       verify the bundle; controller, collections and libraries in place
#   provision   provision.yml from the bundle alone, the model included; once more with another MODEL adds that one
#   containers  try_podman.sh: small programs in containers, checkpointed and restored, before a server is
#   doctor      doctor.yml
#   bench       bench.yml, new or continued
#   results     copy the run to OUT: records, manifest, report, logs of CRIU and of the server; nothing of the images
#
# Environment:
#
#   BUNDLE                the bundle (.bundle)
#   WORK                  where the steps work (/var/tmp/gpuckpt)
#   OUT                   what is to be brought home (WORK/out)
#   GPUCKPT_NODE_PYTHON   an interpreter, 3.12 with PyTorch (python3)
#   MODEL                 gpuckpt_model of every play (the inventory's)
#   EXTRA                 further arguments of every ansible-playbook
#   BUDGET_S              seconds after which bench begins no further entry, 0 for no end
#   LANES                 regular expression of the lanes to measure
#   RUN_ID                the run; it is of one MODEL: the next one needs another, or WORK/run-id removed
#   PODMAN                yes if the bundle holds podman: containers are provisioned, and the lanes podman-* are there
#   TRY                   what the step containers tries (plain cuda)
#   PLAY_S                seconds that a play may take, 0 for no end
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${WORK:-/var/tmp/gpuckpt}
bundle=$work/bundle
out=${OUT:-$work/out}
python=${GPUCKPT_NODE_PYTHON:-$(command -v python3)}
controller=$work/controller
readonly project work bundle out python controller
export GPUCKPT_NODE_PYTHON=$python ANSIBLE_CONFIG=$project/ansible.cfg PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8

say() { printf '==> %s: %s\n' "$(date +%T)" "$*"; }
tool() { "$python" "$project/roles/bundle/files/gpuckpt_bundle.py" "$@"; }

with_podman() {
	local offered=no
	if grep -q '"podman": {' "$bundle/bundle.json" 2>/dev/null; then offered=yes; fi
	[ "${PODMAN:-$offered}" = yes ]
}

play() {
	local playbook=$1 podman=false model=()
	shift
	if with_podman; then podman=true; fi
	if [ -n "${MODEL:-}" ]; then model=(-e "gpuckpt_model=$MODEL"); fi
	# shellcheck disable=SC2086 # EXTRA is a list of arguments
	(cd "$project" && timeout --foreground --kill-after=30 "${PLAY_S:-0}" \
		"$controller/bin/python" -m ansible playbook -i inventories/gpu-local "$playbook" -l gpu-nodes \
		-e "{\"gpuckpt_podman\": $podman}" "${model[@]}" "$@" ${EXTRA:-})
}

collect() {
	mkdir -p "$bundle"
	cp -a "${BUNDLE:-$project/.bundle}/." "$bundle/"
	du -ah "$bundle"
}

look() {
	nvidia-smi || say 'no nvidia-smi in PATH'
	"$python" --version
	grep -E 'MemTotal|MemAvailable|HugePages_Total' /proc/meminfo
	printf 'cores %s, kernel %s, io_uring_disabled %s, THP %s\n' "$(nproc)" "$(uname -r)" \
		"$(cat /proc/sys/kernel/io_uring_disabled)" "$(cat /sys/kernel/mm/transparent_hugepage/enabled)"
	ldconfig -p | grep -E 'libcuda\.so|libnvidia-ml' || say 'the linker does not know libcuda.so.1'
	df -h / /dev/shm
}

# Programs with an empty environment (CRIU's plugin, the modules) find the driver by the linker's own list.
link_driver() {
	local library folder
	if ldconfig -p | grep -q 'libcuda\.so\.1 '; then return; fi
	library=$(find /usr/local/nvidia /usr/lib /opt -name 'libcuda.so.1' 2>/dev/null | sort | head -n 1)
	[ -n "$library" ] || { say 'libcuda.so.1 is nowhere: is the driver installed?'; return 1; }
	folder=$(dirname "$library")
	printf '%s\n' "$folder" >/etc/ld.so.conf.d/gpuckpt-nvidia.conf
	ldconfig
	say "the linker now knows $folder"
}

# The modules look for commands in the system's folders alone.
link_nvidia_smi() {
	local found
	found=$(PATH=$PATH:/usr/local/nvidia/bin command -v nvidia-smi) || { say 'nvidia-smi is nowhere'; return 1; }
	case $found in
	/usr/bin/* | /usr/local/bin/*) ;;
	*) ln -sf "$found" /usr/local/bin/nvidia-smi ;;
	esac
}

# An environment of its own sees the bundle's tree first, then what the node's Python has.
make_controller() {
	local site
	tool unpack "$bundle" controller "$work/controller-site"
	tool unpack "$bundle" collections "$project/.ansible/collections"
	"$python" -m venv --without-pip --clear "$controller"
	site=$("$controller/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	{
		printf '%s\n' "$work/controller-site" "$project/reports"
		"$python" -c 'import site; print("\n".join(site.getsitepackages()))'
	} >"$site/gpuckpt.pth"
	"$controller/bin/python" -m ansible playbook --version | sed -n 1p
	"$controller/bin/python" -c 'import gpuckpt_report, pandas; print("pandas", pandas.__version__)' ||
		say 'the report cannot be rendered here; the records are enough to render it elsewhere'
}

setup() {
	tool verify "$bundle"
	link_driver
	link_nvidia_smi
	make_controller
}

# The server is not started for a trial here: the benchmark's first entry is one.
provision() {
	play provision.yml -e "gpuckpt_bundle=$bundle" -e '{"inference_server_phases": ["validate", "install", "configure"]}'
}

# A word of TRY is a variant.
containers() {
	# shellcheck disable=SC2086
	OUT=$out/try-podman "$project/tools/try_podman.sh" ${TRY:-plain cuda}
}

doctor() { play doctor.yml; }

bench() {
	local id_file=$work/run-id run continued=()
	mkdir -p "$work/runs"
	[ -z "${RUN_ID:-}" ] || printf '%s\n' "$RUN_ID" >"$id_file"
	[ -s "$id_file" ] || date -u +%Y%m%dT%H%M%SZ >"$id_file"
	run=$(cat "$id_file")
	if [ -e "$work/runs/$run/manifest.json" ]; then continued=(-e gpuckpt_continue=true); fi
	play bench.yml -e "gpuckpt_run_id=$run" -e "gpuckpt_results_dir=$work/runs" \
		-e "gpuckpt_time_budget_s=${BUDGET_S:-0}" -e "gpuckpt_lane_filter=${LANES:-}" "${continued[@]}"
}

results() {
	local run
	mkdir -p "$out"
	run=$(cat "$work/run-id" 2>/dev/null || true)
	[ -z "$run" ] || tar -czf "$out/run.tar.gz" -C "$work/runs" "$run"
	[ ! -d "/var/lib/gpuckpt/runs/$run" ] || tar -czf "$out/node-records.tar.gz" -C /var/lib/gpuckpt/runs "$run"
	tail -c 2000000 /var/log/gpuckpt-vllm.log >"$out/server.log" 2>/dev/null || true
	find /mnt/checkpoint-ram -maxdepth 3 -path '*/work/*' -name '*.log' -size -8M -print0 |
		tar -czf "$out/criu-logs.tar.gz" --null --files-from=- 2>/dev/null || true
	{ nvidia-smi; dmesg | tail -n 100; df -h; free -m; } >"$out/node.txt" 2>&1 || true
	if with_podman; then podman_state >"$out/podman.txt" 2>&1 || true; fi
	ls -la "$out"
}

# What to look at where a container did not start: its configuration, what podman made of it, and what is left.
podman_state() {
	local podman=/usr/local/bin/podman folder
	tail -n +1 /etc/containers/*.conf /etc/containers/containers.conf.d/*.conf /etc/criu/runc.conf /etc/gpuckpt/criu.env
	"$podman" info
	"$podman" ps --all
	cat /proc/self/mountinfo /sys/fs/cgroup/cgroup.controllers
	ls -l /dev/nvidia*
	for folder in /var/lib/gpuckpt/containers/overlay-containers/*/userdata; do
		tail -n 50 "$folder"/*.log
	done
}

[ $# -gt 0 ] || { sed -n '3,25s/^# \{0,1\}//p' "$0"; exit 2; }
for step in "$@"; do
	case $step in
	collect | look | setup | provision | containers | doctor | bench | results)
		say "$step"
		"$step"
		;;
	*)
		printf 'run_on_node.sh: no step %s; run it without arguments for the list\n' "$step" >&2
		exit 2
		;;
	esac
done
say "all steps done"
