#!/bin/sh
# CRIU's release tarball for the native tests, as the role criu names and fetches it. Instant when it is there.
# GPUCKPT_CRIU_TARBALL names another copy.
set -eu
cd -- "$(dirname -- "$0")/.."

setting() { sed -n "s/^$1: *//p" roles/criu/defaults/main.yml; }

[ -z "${GPUCKPT_CRIU_TARBALL:-}" ] || exit 0
target=.cache/sources/criu_$(setting criu_version).orig.tar.xz
sha256=$(setting criu_tarball_sha256)
if [ -f "$target" ] && printf '%s  %s\n' "$sha256" "$target" | sha256sum --check --status; then
    exit 0
fi
printf 'sources: fetching %s\n' "$target"
mkdir -p .cache/sources
upstream=$(setting criu_tarball_upstream | sed "s/{{ criu_version }}/$(setting criu_version)/")
from_apt=$(sh roles/criu/files/fetch_from_apt.sh "$PWD/$target" "$sha256" 2>&1) ||
    from_project=$(sh roles/criu/files/fetch_upstream.sh "$PWD/$target" "$sha256" "$upstream" 2>&1) || {
    printf 'sources: %s %s Name a copy in GPUCKPT_CRIU_TARBALL.\n' "$from_apt" "$from_project" >&2
    exit 1
}
