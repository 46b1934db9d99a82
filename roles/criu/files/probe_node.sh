#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints what a node has of CRIU: complete builds below ROOT (those with a BUILD.json), and the distribution's own.
# usage: probe_node.sh ROOT
for build in "$1"/*/BUILD.json; do
	home=${build%/BUILD.json}
	if [ -f "$build" ] && [ ! -L "$home" ]; then printf 'build %s\n' "${home##*/}"; fi
done
if [ -x /usr/sbin/criu ]; then
	printf 'distro %s\n' "$(dpkg-query --show --showformat '${Version}' criu 2>/dev/null || echo unpackaged)"
elif apt-cache show criu >/dev/null 2>&1; then
	echo available
fi
