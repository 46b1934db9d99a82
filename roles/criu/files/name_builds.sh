#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints, for each variant, the digest of the build that belongs on a platform, and whether an archive of it lies here.
# usage: name_builds.sh PROJECT PLATFORM TARBALL_SHA256 ARCHIVES PREBUILT VARIANT...
# PREBUILT, unless empty, is a folder of finished builds, one for each variant: then these are the builds that belong.
set -eu
project=$1 platform=$2 tarball_sha256=$3 archives=$4 prebuilt=$5
shift 5
for variant in "$@"; do
	if [ -n "$prebuilt" ]; then
		digest=$(sed -n 's/^ *"digest": *"\([0-9a-f]*\)".*/\1/p' "$prebuilt/$variant/BUILD.json")
	else
		digest=$("$project/native/build.sh" digest --variant "$variant" --tarball-sha256 "$tarball_sha256" --platform "$platform")
	fi
	printf 'build %s %s\n' "$variant" "$digest"
	if [ -f "$archives/criu-$variant-$digest.tar.gz" ]; then printf 'archived %s\n' "$variant"; fi
done
