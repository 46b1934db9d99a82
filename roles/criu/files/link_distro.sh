#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes the distribution's own CRIU look like one of our builds, so that a lane can name it. Copies nothing.
# usage: link_distro.sh HOME VERSION DIGEST PLATFORM FRONT
set -eu
home=$1 version=$2 digest=$3 platform=$4 front=$5
rm -rf "$home"
mkdir -p "$home/bin" "$home/libexec" "$home/lib"
ln -s /usr/sbin/criu "$home/libexec/criu"
plugins=$(find /usr/lib -maxdepth 2 -type d -name criu | head -n 1)
ln -s "${plugins:-/usr/lib/criu}" "$home/lib/criu"
install -m 755 "$front" "$home/bin/criu"
cat >"$home/BUILD.json" <<JSON
{
  "build": "distro",
  "criu_version": "$(/usr/sbin/criu --version | sed -n 's/^Version: //p')",
  "package_version": "$version",
  "digest": "$digest",
  "platform": "$platform",
  "binary_sha256": "$(sha256sum /usr/sbin/criu | cut -d' ' -f1)"
}
JSON
