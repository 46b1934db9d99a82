#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Provides the image that scenarios run containers from, localhost/gpuckpt-molecule:DISTRO (and :latest), and prints its name.
# DISTRO is this machine's own (debian12, ...): the image is made from the packages that its apt sources offer.
# A provisioned node has an image with a Python, which is all that scenarios need: they take that one.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
packages=python3,python3-apt,iproute2,procps

# shellcheck source=/dev/null
. /etc/os-release
image=localhost/gpuckpt-molecule:$ID${VERSION_ID:-}
provisioned=localhost/gpuckpt-reference:latest
if podman image exists "$provisioned"; then
	podman tag "$provisioned" "$image" localhost/gpuckpt-molecule:latest
	echo "$image"
	exit
fi
inputs=$({ echo "$packages" && cat "$project/roles/container_runtime/files/build_image.sh"; } | sha256sum | cut -d' ' -f1)

built_from=$(podman image inspect --format '{{index .Labels "io.gpuckpt.inputs"}}' "$image" 2>/dev/null) || built_from=none
if [ "$built_from" != "$inputs" ]; then
	"$project/roles/container_runtime/files/build_image.sh" "$image" "$VERSION_CODENAME" "$packages" "io.gpuckpt.inputs=$inputs" >&2
fi
podman tag "$image" localhost/gpuckpt-molecule:latest
echo "$image"
