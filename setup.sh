#!/bin/bash
# Make this tree ready to run: the Debian packages it needs (and those named as arguments), and .venv.
# Installs nothing twice; when all is there it needs neither root nor a network, and a fraction of a second.

set -euo pipefail
cd "$(dirname "$0")"
umask 022 # the proxy, which is not root, reads .venv too

PACKAGES=(python3-bpfcc nftables linux-libc-dev python3-venv iproute2 "$@")
# The system's own Python, whatever `python3` is on the PATH: bcc comes as a Debian package for that one only.
PYTHON=/usr/bin/python3
STAMP=.venv/installed

say() { echo "setup: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

# Keep the services that packages bring from starting, now (policy-rc.d) and at the next boot (disable).
POLICY=/usr/sbin/policy-rc.d
forbid_services() {
    [ -e "$POLICY" ] && return
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

disable_services() {
    local service
    # Its own switch: its services then do nothing, whoever enables them.
    [[ " $* " != *" cloud-init "* ]] || touch /etc/cloud/cloud-init.disabled
    for service in haproxy nginx openvswitch-switch; do
        [[ " $* " == *" $service "* ]] || continue
        if command -v systemctl >/dev/null; then
            systemctl disable --quiet "$service.service"
        else
            update-rc.d "$service" disable
        fi || say "$service may start at the next boot: disable its service"
    done
}

install_packages() {
    [ "$(id -u)" = 0 ] || fail "not root, and packages are missing: run this as root once, or: apt-get install $*"
    say "installing Debian packages: $*"
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=120)
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" update || say "apt-get update failed (no network?); trying with the lists that are here"
    forbid_services
    "${apt[@]}" install --no-install-recommends -y "$@" </dev/null >/dev/null ||
        fail "apt-get could not install $*: see above; it needs a network, or a mirror in /etc/apt"
    disable_services "$@"
}

check_without_dpkg() {
    local tool
    for tool in nft ip "$@"; do
        command -v "$tool" >/dev/null || fail "no dpkg here and no '$tool': install what Debian has as ${PACKAGES[*]}"
    done
}

wanted_stamp() {
    pwd # an editable install knows its folder by name
    "$PYTHON" -V
    sha256sum pyproject.toml setup.sh
}

make_venv() {
    say "making .venv"
    "$PYTHON" -m venv --clear --system-site-packages .venv ||
        fail "$PYTHON cannot make a virtual environment: see above"
    .venv/bin/pip install --quiet --no-input --disable-pip-version-check -e '.[dev]' ||
        fail "pip could not install the Python packages: see above; it needs a network, or an index of your own" \
            "in pip's configuration"
    .venv/bin/python -c 'from bcc import BPF' ||
        fail "$PYTHON has no bcc, which Debian's python3-bpfcc brings for the system's own Python"
    wanted_stamp >"$STAMP"
}

if command -v dpkg-query >/dev/null; then
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" = 0 ] || install_packages "${missing[@]}"
else
    check_without_dpkg "$@"
fi
[ -x "$PYTHON" ] || fail "no $PYTHON"
[ "$(cat "$STAMP" 2>/dev/null)" = "$(wanted_stamp)" ] || make_venv
