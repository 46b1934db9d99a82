#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints what a node has of CRIU. First the complete builds below ROOT (those with a BUILD.json), the newest first. Then the
# links there and the FRONT, with their targets, and the distribution's own.
# usage: probe_node.sh ROOT FRONT
# shellcheck disable=SC2012  # by time: only ls sorts so, and the names are digests
ls -1t "$1"/*/BUILD.json 2>/dev/null | while read -r build; do
	home=${build%/BUILD.json}
	if [ ! -L "$home" ]; then printf 'build %s\n' "${home##*/}"; fi
done
for link in "$1"/* "$2"; do
	if [ -L "$link" ]; then printf 'link %s %s\n' "$link" "$(readlink "$link")"; fi
done
if [ -x /usr/sbin/criu ]; then
	printf 'distro %s\n' "$(dpkg-query --show --showformat '${Version}' criu 2>/dev/null || echo unpackaged)"
# a name that packages only mention (on Ubuntu 24.04, which has no criu) is known to apt, but has no candidate
elif LC_ALL=C apt-cache policy criu 2>/dev/null | grep -q '^  Candidate: [^(]'; then
	echo available
fi
