#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints what a benchmark must know of a node: whether the model is there, how many records of the run lie there
# already, and the free bytes and the mount point of the store.
# usage: probe_node.sh MODEL RECORDS STORE
if [ -e "$1" ]; then echo 'model'; fi
for record in "$2"/*.json; do
	if [ -f "$record" ]; then set -- "$1" "$2" "$3" "$((${4:-0} + 1))"; fi
done
printf 'records %s\n' "${4:-0}"
LC_ALL=C df --output=avail,target --block-size=1 "$3" 2>/dev/null | sed -n '2s/^ */store /p'
