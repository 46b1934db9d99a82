#!/bin/sh
# The virtual environment of the controller, from hash-pinned requirements:
#   requirements/setup.sh controller|dev
# Installs the distribution's python3 first where it is missing. PYTHON names another interpreter, VENV another folder.
set -eu

set_name=${1:?usage: setup.sh controller|dev}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${VENV:-$root/.venv}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "root is needed to run: $* (run as root, or install sudo)"
    fi
}

# ensurepip is what Debian and Ubuntu split off into python3-venv.
usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11}; do
        if usable "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

install_python() {
    command -v apt-get >/dev/null || die 'no Python 3.11 to 3.13 with venv found, and no apt-get to install one: install python3 and python3-venv'
    say 'installing python3 and python3-venv from the distribution'
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3 python3-venv ca-certificates >/dev/null
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || { install_python; python=$(find_python); } ||
        die "no Python 3.11 to 3.13 with venv found${PYTHON:+ at PYTHON=$PYTHON}"
    say "virtual environment with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

say "packages of requirements/$set_name.txt"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
    --require-hashes --only-binary=:all: --requirement "$root/requirements/$set_name.txt"

# No isolation: setuptools is among the pinned requirements, so nothing unpinned is fetched to build.
say 'the report package, editable'
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
    --no-index --no-deps --no-build-isolation --editable "$root"

"$venv/bin/python" "$root/requirements/fetch_collections.py"
say "ready: $("$venv/bin/ansible" --version | sed -n 1p)"
