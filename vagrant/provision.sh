#!/bin/bash
# provision.sh TREE NAME ADDRESS: install metashim from TREE as an admin would, in a machine that was made for it.
# What the tests need beside it comes by apt where it is not there; vagrant/run's own boxes have it all.

set -euo pipefail

if [ "$(hostname)" != "$2" ]; then
    echo "$2" >/etc/hostname
    hostname "$2"
    echo "127.0.1.1 $2" >>/etc/hosts
fi
if ! ip -brief address | grep -qF "$3/"; then
    ip link set eth1 up
    ip address add "$3/24" dev eth1
fi

# An emulated processor offers to virtualise, too, which is slower by far than to emulate once more.
if [ "$(systemd-detect-virt)" = qemu ] && lsmod | grep -q ^kvm_amd; then modprobe -r kvm_amd; fi

packages=(make git curl wget jq rsync procps kmod tcpdump qemu-system-x86)
command -v busybox >/dev/null || packages+=(busybox)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" != 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi

exec "$1/vagrant/install.sh" "$1"
