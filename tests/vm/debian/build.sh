#!/bin/bash
# build.sh FOLDER MODULES: make FOLDER/disk, a disk without partitions with Debian 12 on it and MODULES, the kernel's.
# No boot loader and no kernel: QEMU starts it with one. Needs root, mmdebstrap and a Debian mirror; mounts no loop.
# It goes the way of Debian's own cloud images (networkd by netplan, cloud-init, sshd), without what boots do not meet:
# documentation, translations, a boot loader.

set -euo pipefail
folder=$1 modules=$2
release=$(basename "$modules") root=$folder/root
mkdir "$folder" "$root"

packages=(
    systemd-sysv udev dbus kmod iproute2 iputils-ping netplan.io sudo
    cloud-init cloud-guest-utils openssh-server curl python3
)

mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --include="$(IFS=,; echo "${packages[*]}")" \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$root" </dev/null

mkdir -p "$root/usr/lib/modules"
cp -a "$modules" "$root/usr/lib/modules/"
chroot "$root" depmod "$release"

# As a cloud image has it: networkd runs, no locale has to be made, and each guest makes keys and an id of its own.
chroot "$root" systemctl --quiet enable systemd-networkd
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
echo LANG=C.UTF-8 >"$root/etc/default/locale"
echo debian >"$root/etc/hostname"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw 0 1' >"$root/etc/fstab"

mke2fs -q -t ext4 -d "$root" -L root -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 "$folder/disk" 1200M
rm -rf --one-file-system "$root"
