#!/bin/sh
# Make .venv: the exact versions of constraints.txt, shardclip itself, and pillow-simd in a folder of its own.
set -eu
cd "$(dirname "$0")"
start=$(date +%s)
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $PYTHON is older than 3.11. Name a newer one: make PYTHON=python3.11" >&2; exit 2; }
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
    rm -rf .venv
    echo "setup: $PYTHON cannot make a virtual environment. On Debian: apt-get install python3-venv" >&2; exit 2; }
echo "setup: installing into .venv (torch with CUDA libraries: about 6 GB)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
# uv does not read pip's settings: hand it the registry that pip is set up for, where one is.
index=$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)
[ -z "${PIP_INDEX_URL:-$index}" ] || export UV_DEFAULT_INDEX="${PIP_INDEX_URL:-$index}"
# Compiled once, here: the libraries are 10,000 modules, and where Python may not write beside them each start would compile
# what it imports, 7 seconds of it.
install() { .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python "$@"; }
install --constraint constraints.txt --editable '.[dev]'
# The builder's image workers put this folder first on their path; everything else keeps Pillow.
simd=.venv/lib/shardclip-pillow-simd
if [ ! -d "$simd" ]; then
    if CC="cc -mavx2" install --no-deps --no-binary pillow-simd --target "$simd.new" "$(grep ^pillow-simd constraints.txt)" \
        2>.venv/pillow-simd.log; then
        mv "$simd.new" "$simd"
    else
        rm -rf "$simd.new"
        echo "setup: pillow-simd does not compile here (.venv/pillow-simd.log says why; it needs a C compiler, libjpeg and"
        echo "setup: zlib headers: apt-get install gcc python3-dev libjpeg-dev zlib1g-dev). Building will use Pillow, about half as fast."
    fi
fi
touch .venv/.ready
echo "setup: done in $(($(date +%s) - start)) s"
