#!/bin/sh
# System packages that the checks use, beyond what the roles install on a node. Says what it installs; instant when all is there.
set -eu

# CRIU's build, its own tests (zdtm wants the distribution's python3), allocators for ours, containers, the images made for molecule, and copies elsewhere
packages="
    git gcc make libc6-dev pkg-config xz-utils patch file ca-certificates
    libprotobuf-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler python3-protobuf
    libnl-3-dev libnl-route-3-dev libcap-dev libnet1-dev uuid-dev libbsd-dev libnftables-dev libgnutls28-dev libxxhash-dev libaio-dev
    libjemalloc-dev libtcmalloc-minimal4
    python3 python3-venv python3-yaml
    podman runc iptables nftables mmdebstrap gnupg openssh-client
    rclone skopeo age casync
"

# Their packages start servers, which is CI's business; elsewhere the tests of PostgreSQL and of a registry are skipped, and say so.
[ -z "${CI:-}" ] || packages="$packages postgresql docker-registry"

missing=
for package in $packages; do
    # a virtual package (pkg-config on newer releases) has no status of its own
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

printf 'deps: installing%s\n' "$missing"
if [ "$(id -u)" -eq 0 ]; then sudo=
elif command -v sudo >/dev/null; then sudo=sudo
else echo 'deps: root is needed to install packages: run as root, or install sudo' >&2; exit 1
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
