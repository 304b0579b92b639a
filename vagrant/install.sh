#!/bin/bash
# Install metashim on this machine as README.md's "On a hypervisor" says, line by line, and start it.
#
#   install.sh SOURCE [CONFIGURATION]
#
# SOURCE is a folder with the tree (copied as it is, uncommitted changes too) or what `git clone` takes;
# CONFIGURATION, if given, becomes /etc/metashim/metashim.toml. May be run again over an older installation.
# A line that README has is run by `as_told`, which shows it first: tests/unit/test_install.py holds the two together.

set -euo pipefail

source=${1:?what to install from: a folder, or a repository\'s address}
configuration=${2:-}

say() { echo "install: $*"; }

as_told() {
    say "# $* ($((SECONDS)) s)"
    "$@"
}

there() { # what a second installation need not do again
    case "$*" in
        "ln -s "*) [ "$(readlink "${*: -1}")" = "$3" ] ;;
        useradd\ *) id -u "${*: -1}" >/dev/null 2>&1 ;;
        *) false ;;
    esac
}

once() {
    if there "$@"; then say "already there: $*"; else as_told "$@"; fi
}

fetch() {
    if [ -d "$source" ]; then
        mkdir -p "$2"
        cp -R "$source/." "$2"
    else
        git clone "$@"
    fi
}

if [ "$(id -u)" != 0 ]; then
    say "not root: it installs packages, a user and a unit" >&2
    exit 1
fi
if ! [ -d /run/systemd/system ]; then
    say "systemd does not run here: README.md says how to start the agent by hand" >&2
    exit 1
fi

as_told fetch "$source" /opt/metashim
as_told make -C /opt/metashim setup
once ln -s /opt/metashim/.venv/bin/metashim /usr/local/bin/metashim
once useradd --system --no-create-home --shell /usr/sbin/nologin metashim
as_told mkdir -p /etc/metashim
if [ -n "$configuration" ]; then cp "$configuration" /etc/metashim/metashim.toml; fi
as_told cp /opt/metashim/systemd/metashim.service /etc/systemd/system/
as_told metashim check
as_told systemctl daemon-reload
as_told systemctl enable --now metashim
as_told metashim status
say "installed in $SECONDS s"
