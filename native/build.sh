#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Builds CRIU from its release tarball: `stock` as released, `patched` with our sources and patches.
set -euo pipefail
export LC_ALL=C

native=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly native
readonly install_root=/opt/gpuckpt/criu

usage() {
	cat <<'TEXT'
Usage:
  build.sh digest --variant stock|patched --tarball FILE|--tarball-sha256 HEX [--platform ID]
      Print the 12-digit name of the build that these inputs lead to, on this machine or on platform ID (debian12-x86_64).
  build.sh tree   --variant stock|patched --tarball FILE --tree DIR
      Unpack FILE to DIR (which must not exist), add our sources and apply our patches; build nothing.
  build.sh build  --variant stock|patched --tarball FILE --out DIR [--tree DIR] [--jobs N] [--bundle-libs]
      Build and install to DIR (which must not exist). DIR/BUILD.json is written last: without it DIR is incomplete.
      --tree DIR      keep the build tree there (CRIU's own tests need it) instead of in a scratch folder
      --bundle-libs   copy the shared libraries, except the C library's, to DIR/lib, for a node that lacks them

Sources: native/criu/ goes to the tree's criu/, native/cuda/ to its plugins/cuda/, native/patches/series names the patches.
Commands that stand next to CRIU (cuda-checkpoint) are built by native/cuda/commands.mk, target `all`, into the folder O=,
and are installed to DIR/bin in both variants.
TEXT
}

die() {
	printf 'build.sh: %s\n' "$*" >&2
	exit 1
}

say() { printf '==> %s\n' "$*"; }

sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }

platform() {
	if [ -n "$platform_id" ]; then
		printf '%s\n' "$platform_id"
		return
	fi
	(
		# shellcheck source=/dev/null
		. /etc/os-release
		printf '%s%s-%s\n' "$ID" "${VERSION_ID:-}" "$(uname -m)"
	)
}

# Patches in the order of application, as absolute paths.
series() {
	local name
	while read -r name _; do
		case $name in '' | '#'*) continue ;; esac
		[ -f "$native/patches/$name" ] || die "native/patches/series names $name, which does not exist; restore the file or drop the line"
		printf '%s\n' "$native/patches/$name"
	done <"$native/patches/series"
}

# Our sources below the given folders of native/, sorted, as absolute paths.
sources() {
	local folder
	for folder in "$@"; do
		[ -d "$native/$folder" ] || continue
		find "$native/$folder" -type f ! -name '.*' ! -name '*.o' ! -name '*.so' ! -name '*~'
	done | sort
}

# Every file that decides what is built. native/cuda and staging belong to both variants: cuda-checkpoint is built from them.
inputs() {
	printf '%s\n' "$native/build.sh" "$native/front/criu"
	sources cuda staging
	if [ "$variant" = patched ]; then
		sources criu
		printf '%s\n' "$native/patches/series"
		series
	fi
}

digest() {
	local file
	{
		printf 'tarball %s\nvariant %s\nplatform %s\n' "${tarball_sha256:-$(sha256_of "$tarball")}" "$variant" "$(platform)"
		inputs | while read -r file; do
			printf '%s %s\n' "${file#"$native"/}" "$(sha256_of "$file")"
		done
	} | sha256sum | cut -c1-12
}

apply() {
	local patch=$1 report
	report=$(patch --directory="$tree" --strip=1 --fuzz=0 --forward --batch --no-backup-if-mismatch <"$patch" 2>&1) ||
		die "$(basename "$patch") does not apply to $(basename "$tarball"):
$report
refresh it against this release (docs/native.md) or use the release it was made for"
	# A hunk that moved may have landed in the wrong function: with so little context, `patch` cannot tell.
	case $report in *offset*) die "$(basename "$patch") applies only at another place:
$report
refresh it (docs/native.md)" ;; esac
	say "applied $(basename "$patch")"
}

overlay() {
	local folder=$1 target=$2 file
	sources "$folder" | while read -r file; do
		install -D -m 644 "$file" "$target/${file#"$native/$folder"/}"
	done
}

make_tree() {
	local patch
	[ ! -e "$tree" ] || die "--tree $tree exists already; remove it or name another folder"
	mkdir -p "$tree"
	say "unpacking $(basename "$tarball")"
	tar -xf "$tarball" -C "$tree" --strip-components=1
	[ -f "$tree/Makefile.versions" ] || die "$tarball holds no CRIU source tree (no Makefile.versions)"
	[ "$variant" = patched ] || return 0
	overlay criu "$tree/criu"
	overlay cuda "$tree/plugins/cuda"
	series | while read -r patch; do apply "$patch"; done
}

compile() {
	local log=$scratch/make.log
	say "compiling $variant with $jobs jobs"
	# Both names are read by CRIU's Makefiles. A response file keeps $ORIGIN out of reach of make and the shell;
	# DT_RPATH, unlike DT_RUNPATH, also holds for the libraries of our libraries.
	# shellcheck disable=SC2016
	printf '%s\n' '-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib' >"$scratch/link.rsp"
	# Stock and patched share /run/criu.kdat only if this stamp is equal; else each run after a switch probes the kernel again.
	SOURCE_DATE_EPOCH=$(stat -c %Y "$tree/Makefile.versions") WRAPFLAGS=@$scratch/link.rsp \
		make -C "$tree" -j"$jobs" PREFIX=/usr PLUGINDIR="$install_root/$name/lib/criu" criu cuda_plugin >"$log" 2>&1 || {
		tail -n 40 "$log" >&2
		die "compiling $variant failed (last lines above)"
	}
}

compile_commands() {
	mkdir "$scratch/commands"
	say "compiling the commands and the library next to CRIU"
	make -C "$native/cuda" -f commands.mk O="$scratch/commands" all >"$scratch/commands.log" 2>&1 || {
		tail -n 40 "$scratch/commands.log" >&2
		die "compiling native/cuda/commands.mk failed (last lines above)"
	}
}

# The shared libraries that $1 loads, except those which must come from the node's own C library.
foreign_libraries() {
	ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' |
		grep -vE '/(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libutil|libnsl|libanl|libmvec)[-.]' || true
}

bundle_libraries() {
	local library
	say "bundling shared libraries"
	foreign_libraries "$stage/libexec/criu" | while read -r library; do
		install -m 644 -D "$(readlink -f "$library")" "$stage/lib/$(basename "$library")"
	done
}

install_files() {
	install -D -m 755 "$tree/criu/criu" "$stage/libexec/criu"
	install -D -m 755 "$tree/plugins/cuda/cuda_plugin.so" "$stage/lib/criu/cuda_plugin.so"
	install -D -m 755 "$native/front/criu" "$stage/bin/criu"
	find "$scratch/commands" -maxdepth 1 -type f -perm -u+x ! -name '*.so' -exec install -m 755 -t "$stage/bin" {} +
	install -D -m 755 -t "$stage/lib" "$scratch/commands/libgpuckpt_staging.so"
}

# A JSON list of {"name", "sha256"} of the files named on standard input.
digests_json() {
	local file separator=''
	printf '['
	while read -r file; do
		printf '%s{"name": "%s", "sha256": "%s"}' "$separator" "${file#"$native"/}" "$(sha256_of "$file")"
		separator=', '
	done
	printf ']'
}

write_build_json() {
	local version patches='[]' source_digests
	version=$(sed -n 's/^CRIU_VERSION_[A-Z]*[[:space:]]*:=[[:space:]]*\([0-9][0-9]*\)$/\1/p' "$tree/Makefile.versions" | paste -sd.)
	source_digests=$(sources cuda staging | digests_json)
	if [ "$variant" = patched ]; then
		patches=$(series | digests_json)
		source_digests=$(sources criu cuda staging | digests_json)
	fi
	cat >"$stage/BUILD.json" <<JSON
{
  "build": "$variant",
  "criu_version": "$version",
  "digest": "$name",
  "platform": "$(platform)",
  "tarball_sha256": "$(sha256_of "$tarball")",
  "patches": $patches,
  "sources": $source_digests,
  "binary_sha256": "$(sha256_of "$stage/libexec/criu")",
  "plugin_sha256": "$(sha256_of "$stage/lib/criu/cuda_plugin.so")",
  "compiler": "$(gcc --version | head -n 1)",
  "built_at": "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
}
JSON
}

build() {
	local name scratch stage
	[ ! -e "$out" ] || die "--out $out exists already; remove it or name another folder"
	name=$(digest)
	scratch=$(mktemp -d)
	# shellcheck disable=SC2064
	trap "rm -rf '$scratch'" EXIT
	tree=${tree:-$scratch/tree}
	stage=$out
	make_tree
	compile
	compile_commands
	say "installing to $out"
	install_files
	if [ "$bundle" = yes ]; then bundle_libraries; fi
	write_build_json
	say "built $variant $name"
}

parse() {
	command=${1:-}
	variant='' tarball='' tarball_sha256='' platform_id='' out='' tree='' jobs=$(nproc) bundle=no
	case $command in
	digest | tree | build) shift ;;
	-h | --help | help)
		usage
		exit 0
		;;
	'') die "no command given; one of digest, tree, build (see --help)" ;;
	*) die "unknown command $command; one of digest, tree, build (see --help)" ;;
	esac
	while [ $# -gt 0 ]; do
		case $1 in
		--bundle-libs)
			bundle=yes
			shift
			continue
			;;
		--tarball-sha256 | --platform)
			[ "$command" = digest ] || die "$1 belongs to digest only (see --help)"
			[ $# -ge 2 ] || die "$1 needs a value (see --help)"
			;;
		--variant | --tarball | --out | --tree | --jobs) [ $# -ge 2 ] || die "$1 needs a value (see --help)" ;;
		*) die "unknown option $1 (see --help)" ;;
		esac
		case $1 in
		--variant) variant=$2 ;;
		--tarball) tarball=$2 ;;
		--tarball-sha256) tarball_sha256=$2 ;;
		--platform) platform_id=$2 ;;
		--out) out=$2 ;;
		--tree) tree=$2 ;;
		--jobs) jobs=$2 ;;
		esac
		shift 2
	done
}

validate() {
	case $variant in
	stock | patched) ;;
	*) die "--variant must be stock or patched, not '$variant'" ;;
	esac
	if [ -z "$tarball_sha256" ]; then
		[ -n "$tarball" ] || die "--tarball FILE is missing (the release tarball of CRIU)"
		[ -f "$tarball" ] || die "--tarball $tarball does not exist; fetch it first"
		tarball=$(readlink -f "$tarball")
	fi
	case $jobs in '' | *[!0-9]* | 0) die "--jobs must be a number above 0, not '$jobs'" ;; esac
	case $command in
	build) [ -n "$out" ] || die "build needs --out DIR" ;;
	tree) [ -n "$tree" ] || die "tree needs --tree DIR" ;;
	esac
	if [ -n "$tree" ]; then tree=$(readlink -m "$tree"); fi
	if [ -n "$out" ]; then out=$(readlink -m "$out"); fi
}

parse "$@"
validate
case $command in
digest) digest ;;
tree) make_tree ;;
build) build ;;
esac
