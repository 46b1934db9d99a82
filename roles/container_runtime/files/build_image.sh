#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Builds a container image from this machine's own distribution and imports it into podman. apt verifies what it fetches.
set -eu

usage="usage: build_image.sh TAG SUITE PACKAGE[,PACKAGE...] LABEL=VALUE"
tag=${1:?$usage}
suite=${2:?$usage}
packages=${3:?$usage}
label=${4:?$usage}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The distribution's own sources only: a vendor's repository has no place in this image, and its key may not be readable.
sources() {
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		[ -f "$file" ] || continue
		grep -Eq "^[^#]*[[:space:]]$suite([[:space:]]|$)" "$file" || continue
		grep -Eq '^[^#]*[[:space:]]main([[:space:]]|$)' "$file" || continue
		printf '%s\n' "$file"
	done
}
mirrors=$(sources)
[ -n "$mirrors" ] || {
	echo "build_image.sh: no source of $suite main in /etc/apt; add the distribution's source, or give an image to pull" >&2
	exit 1
}

# Proxies, certificates and validity settings of this machine hold for the image's downloads, too.
apt-config dump | grep '^Acquire::' | grep -v '::$' >"$scratch/apt.conf" || true

# shellcheck disable=SC2086 # one mirror file a word
mmdebstrap --quiet --variant=essential --include="$packages" --aptopt="$scratch/apt.conf" \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
	"$suite" "$scratch/root.tar" $mirrors

podman import --quiet --change "LABEL $label" "$scratch/root.tar" "$tag"
