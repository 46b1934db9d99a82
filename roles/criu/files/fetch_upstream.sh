#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Fetches CRIU's release archive from its project, for a machine whose distribution has no tarball of it (Ubuntu). Packs it
# anew as Debian's tarball is packed. Git makes the same tar of the same commit, and xz with these options the same bytes of it.
# So the checksum of the tarball decides, whoever served it.
# usage: fetch_upstream.sh TARBALL SHA256 URL
set -eu
target=$1 sha256=$2 url=$3

say_and_stop() {
	printf '%s\n' "$1" >&2
	exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# python3 is on every node that Ansible works on; curl and wget are not.
python3 -I -c '
import shutil, sys, urllib.request
url, path = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=60) as answer, open(path, "wb") as file:
        shutil.copyfileobj(answer, file)
except (OSError, ValueError) as error:
    sys.exit(str(error))
' "$url" "$scratch/release.tar.gz" 2>"$scratch/said" || say_and_stop "$url cannot be fetched: $(tail -n 1 "$scratch/said")."

gzip -dc "$scratch/release.tar.gz" >"$scratch/release.tar" 2>"$scratch/said" || say_and_stop "$url is no gzip archive: $(tail -n 1 "$scratch/said")."
unset XZ_DEFAULTS XZ_OPT
# With threads xz writes blocks whose sizes are told, without it does not: the number is of no matter, that there are threads is.
xz -6 --threads=2 --check=crc64 "$scratch/release.tar"
got=$(sha256sum "$scratch/release.tar.xz" | cut -d' ' -f1)
[ "$got" = "$sha256" ] || say_and_stop "$url, packed by $(xz --version | sed -n 1p), has the sha256 $got, not $sha256: another release, or another packer."
cp "$scratch/release.tar.xz" "$target"
