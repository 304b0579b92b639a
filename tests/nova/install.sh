#!/bin/bash
# Make .venv-nova: the real Nova's metadata API for the tests, in a virtual environment of its own, as its packages
# have nothing to do with metashim's. Does nothing when it is there; 20 to 60 s and a network when it is not.

set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022

PYTHON=/usr/bin/python3
LIST=tests/nova/requirements.txt
STAMP=.venv-nova/installed

wanted_stamp() {
    pwd
    "$PYTHON" -V
    sha256sum "$LIST"
}

[ "$(cat "$STAMP" 2>/dev/null)" = "$(wanted_stamp)" ] && exit
echo "nova: making .venv-nova" >&2
"$PYTHON" -m venv --clear .venv-nova
if ! .venv-nova/bin/pip install --quiet --no-input --disable-pip-version-check --no-deps --no-compile \
    --only-binary :all: -r "$LIST"; then
    rm -rf .venv-nova
    echo "nova: pip could not install it: see above; it needs a network, or an index of your own in pip's" \
        "configuration" >&2
    exit 1
fi
wanted_stamp >"$STAMP"
