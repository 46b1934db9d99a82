#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Fetches CRIU's release tarball from the source index of Debian's development suite, through the mirror that this
# machine already uses. The lists lie in a scratch folder: the machine's own apt state is not touched.
# usage: fetch_from_apt.sh TARBALL SHA256
set -eu
target=$1 sha256=$2

say_and_stop() {
	printf '%s\n' "$1" >&2
	exit 1
}

# shellcheck source=/dev/null
. /etc/os-release
[ "$ID" = debian ] || say_and_stop "This is $ID, not Debian: its mirrors carry no release tarball of CRIU."

# The first archive that serves this release's main component, as deb822 or one-line source.
mirror=$(
	cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v suite="$VERSION_CODENAME" '
		/^URIs:/ { uri = $2 }
		/^Suites:/ { for (i = 2; i <= NF; i++) if ($i == suite) found = 1 }
		/^$/ { if (found && uri) exit; found = 0; uri = "" }
		END { if (found) print uri }'
	cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed 's/\[[^]]*\]//' |
		awk -v suite="$VERSION_CODENAME" '$1 == "deb" && $3 == suite && / main( |$)/ { print $2 }'
)
mirror=$(printf '%s\n' "$mirror" | sed '/^$/d' | head -n 1)
[ -n "$mirror" ] || say_and_stop "No Debian mirror for $VERSION_CODENAME main is configured in /etc/apt."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/lists/partial" "$scratch/cache"
# apt drops its privileges to fetch
chmod 755 "$scratch"
printf 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s sid main\n' "$mirror" >"$scratch/sources.list"

# A mirror may lag behind, or be a snapshot: the tarball's checksum decides, not the index's date.
private_apt() {
	command=$1
	shift
	"$command" -q -o Acquire::Check-Valid-Until=false -o Dir::Etc::SourceList="$scratch/sources.list" -o Dir::Etc::SourceParts=- \
		-o Dir::State::Lists="$scratch/lists" -o Dir::Cache="$scratch/cache" "$@"
}

private_apt apt-get update >"$scratch/update.log" 2>&1 || say_and_stop "Debian's source index cannot be read: $(tail -n 2 "$scratch/update.log" | tr '\n' ' ')."
offered=$(private_apt apt-get --print-uris --only-source source criu 2>/dev/null | grep 'orig\.tar\.[a-z0-9]* ') || true
case $offered in
*"SHA256:$sha256"*) ;;
*) say_and_stop "Debian's source index no longer offers the CRIU that was asked for (now: $(printf '%s' "$offered" | cut -d' ' -f2))." ;;
esac
uri=$(printf '%s' "$offered" | cut -d"'" -f2)
private_apt /usr/lib/apt/apt-helper download-file "$uri" "$target" "SHA256:$sha256" >"$scratch/fetch.log" 2>&1 ||
	say_and_stop "The tarball cannot be fetched: $(tail -n 2 "$scratch/fetch.log" | tr '\n' ' ')."
