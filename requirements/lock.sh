#!/bin/sh
# Newer pins: resolves requirements/*.in for Python 3.11 to 3.13 at once into *.txt, hashes and no index host.
set -eu
cd -- "$(dirname -- "$0")"

tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/python" -m pip install -qq uv

compile() { "$tool/bin/uv" pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header "$@"; }
for name in controller parquet dev; do
    compile --universal --python-version 3.11 --output-file "$name.txt" "$name.in"
done
# for the nodes, whose Python may be another one than the controller's; the role brings the wheels and needs no more than these
compile --no-deps --universal --python-version 3.11 --output-file ../roles/llama_cpp/files/requirements.txt llama_cpp.in
# one wheel for every interpreter: see fetch_collections.py
compile --no-deps --python-version 3.13 --output-file collections.txt collections.in
