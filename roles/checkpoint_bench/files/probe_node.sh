#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints what a benchmark must know of a node: whether the model is there, how many records of the run lie there already, the
# builds of CRIU, and the free bytes and the mount point of the store.
# usage: probe_node.sh MODEL RECORDS STORE CRIU_HOME
model=$1 records=$2 store=$3 criu_home=$4
if [ -e "$model" ]; then echo 'model'; fi
count=0
for record in "$records"/*.json; do
	if [ -f "$record" ]; then count=$((count + 1)); fi
done
printf 'records %s\n' "$count"
for program in "$criu_home"/*/libexec/criu; do
	if [ -x "$program" ]; then
		build=${program%/libexec/criu}
		printf 'build %s\n' "${build##*/}"
	fi
done
LC_ALL=C df --output=avail,target --block-size=1 "$store" 2>/dev/null | sed -n '2s/^ */store /p'
