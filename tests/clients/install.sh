#!/bin/bash
# Install the clients that tests/clients/ runs, as the registries have them, and print the folder that they are in:
#
#     python/    a virtual environment with those of requirements.txt (PyPI)
#     node/      node_modules of package-lock.json (npm)
#     debian/    what Debian's packages hold that a host should not have: agents of clouds, with their services
#     trixie/    the same of a later Debian: the cloud-init of Debian 13
#
# The folder is outside of the tree, in $METASHIM_CACHE or /var/cache/metashim, and its name says what it was made of.
# Does nothing when it is there; about a minute and a network when it is not. Packages that a host may have come by
# setup.sh, as all do.

set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022

PYTHON=/usr/bin/python3
HERE=tests/clients
CACHE=${METASHIM_CACHE:-/var/cache/metashim}
UNPACKED=(amazon-ec2-utils amazon-ec2-net-utils google-guest-agent ignition ansible)
LATER=trixie
UNPACKED_LATER=(cloud-init)
# Of a quarter of a gigabyte.
ANSIBLE=('./usr/lib/python3/dist-packages/ansible_collections/amazon/*'
    './usr/lib/python3/dist-packages/ansible_collections/google/*')

fail() {
    echo "clients: $*" >&2
    exit 1
}

key() {
    {
        cat "$HERE"/{install.sh,requirements.txt,package.json,package-lock.json}
        "$PYTHON" -V
        node --version
    } | sha256sum | cut -c 1-12
}

make_python() {
    "$PYTHON" -m venv "$1"
    "$1/bin/pip" install -qq --no-input --disable-pip-version-check --no-deps --no-compile -r "$HERE/requirements.txt"
}

make_node() {
    mkdir "$1"
    cp "$HERE"/package{,-lock}.json "$1"
    npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
}

# Unpack packages, by apt's options, into a folder, beside which their files are kept for as long as it takes.
unpack() {
    local folder=$1 files=$1.files file
    local -a options=()
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    mkdir "$folder" "$files"
    (cd "$files" && apt-get -qq "${options[@]}" download "$@" 2> >(grep -v unsandboxed >&2))
    for file in "$files"/*.deb; do
        case ${file##*/} in
        ansible_*) dpkg-deb --fsys-tarfile "$file" | tar -x -C "$folder" --wildcards "${ANSIBLE[@]}" ;;
        *) dpkg-deb -x "$file" "$folder" ;;
        esac
        dpkg-deb -W "$file" >>"$folder/versions"
    done
    rm -r "$files"
}

make_debian() {
    local apt=$1/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    unpack "$1/debian" -- "${UNPACKED[@]}"
    mkdir -p "$apt"/{lists,cache/archives}/partial
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian $LATER main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
        -o Acquire::Languages=none)
    apt-get -qq "${options[@]}" update
    unpack "$1/$LATER" "${options[@]}" -- "${UNPACKED_LATER[@]}"
    "$PYTHON" -m compileall -q "$1/$LATER/usr/lib/python3" # rooms copy it: each would compile it again
    rm -r "$apt"
}

command -v npm >/dev/null || ./setup.sh nodejs npm
FOLDER=$CACHE/clients-$(key)
mkdir -p "$CACHE"
exec 9>"$CACHE/.clients.lock"
flock 9
if [ ! -e "$FOLDER/installed" ]; then
    echo "clients: installing them in $FOLDER" >&2
    rm -rf "$CACHE"/clients-*
    mkdir "$FOLDER"
    make_python "$FOLDER/python" & python=$!
    make_node "$FOLDER/node" & node=$!
    make_debian "$FOLDER" & debian=$!
    done=0
    wait $python || done="pip"
    wait $node || done="npm"
    wait $debian || done="apt-get"
    if [ "$done" != 0 ]; then
        rm -rf "$FOLDER"
        fail "$done could not install all of them: see above; it needs a network, or an index of your own in its" \
            "configuration"
    fi
    touch "$FOLDER/installed"
fi
echo "$FOLDER"
