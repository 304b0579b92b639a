#!/bin/bash
# build.sh FOLDER SUITE WHEELS PACKAGE...: make in FOLDER what a box of Vagrant's libvirt provider consists of.
#
# FOLDER gets box.img (qcow2, one ext4 without partitions), vmlinuz, initrd, metadata.json and Vagrantfile: a machine
# that QEMU starts without a boot loader. SUITE is Debian's, with its own kernel; WHEELS a folder of Python packages,
# from which pip in the machine installs, as there is no network. Needs root, mmdebstrap, qemu-img, a Debian mirror.
#
# setup.sh has run there, at /opt/metashim: its virtual environment is in the box, and a tree that is copied to it finds
# all set up. An emulated processor takes minutes for that, and a box's recipe has in it what setup.sh goes by.

set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin # mmdebstrap starts `python3` for each package: the system's is the quickest
here=$(realpath "$(dirname "$0")") tree=$(realpath "$(dirname "$0")/../..")
folder=$1 suite=$2 wheels=$3
shift 3

# Mounts and processes of its own: nothing stays mounted or goes on, however this ends.
if [ -z "${BUILD_IN_NAMESPACE:-}" ]; then
    BUILD_IN_NAMESPACE=1 exec \
        unshare --mount --pid --fork --kill-child --mount-proc "$0" "$folder" "$suite" "$wheels" "$@"
fi

mkdir -p "$folder"
room=$(mktemp -d "$folder/room.XXXX")
trap 'umount --lazy "$room/root/proc" "$room" 2>/dev/null || true; rm -rf --one-file-system "$room"' EXIT

# In memory, where there is some: a disk takes several times as long over thirty thousand small files.
room_mib=3000
if [ "$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)" -gt $((room_mib + 1000)) ]; then
    mount -t tmpfs -o "size=${room_mib}m,mode=755" room "$room"
fi
root=$room/root

say() { echo "$SECONDS s: $*"; }

say "packages of $suite"
# INITRD=No: the one that is made here needs neither udev nor a search for its root, and boots sooner.
TMPDIR=$room INITRD=No mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --include="$(IFS=,; echo "$*")" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$root" </dev/null

say "settings"
mount -t proc proc "$root/proc"
"$here/settings.sh" "$root"
mkdir "$root/opt/wheels"
cp "$wheels"/*.whl "$root/opt/wheels"

say "metashim's virtual environment"
prefix=$root/opt/metashim
mkdir "$prefix"
cp "$tree/pyproject.toml" "$tree/setup.sh" "$tree/README.md" "$prefix"
(cd "$tree" && find shim -name __init__.py -exec cp --parents {} "$prefix" \;)
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$root" /opt/metashim/setup.sh
rm -rf "$prefix/shim" "$prefix/README.md"

say "kernel and initrd"
release=$(basename "$root"/usr/lib/modules/*)
cp "$root/boot/vmlinuz-$release" "$folder/vmlinuz"
small=$root/initrd
mkdir -p "$small"/{bin,dev,disk,lib/modules,proc,sys}
cp "$root/usr/bin/busybox" "$small/bin/"
for applet in sh mount umount insmod usleep switch_root; do ln -s busybox "$small/bin/$applet"; done
install -m 755 "$here/init" "$small/init"
number=10
while read -r verb module _; do
    [ "$verb" = insmod ] || continue
    name=$(basename "$module")
    case $module in
        *.xz) chroot "$root" xz -dc "$module" >"$small/lib/modules/$number-${name%.xz}" ;;
        *) cp "$root/$module" "$small/lib/modules/$number-$name" ;;
    esac
    number=$((number + 1))
done < <(chroot "$root" modprobe --set-version "$release" --show-depends --all virtio_pci virtio_blk |
    awk '!seen[$0]++')
chroot "$root" sh -c 'cd /initrd && find . | cpio --quiet -o -H newc' >"$folder/initrd"
rm -rf "$small"
umount "$root/proc"

say "disk"
mke2fs -q -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=1,root_owner=0:0 -d "$root" "$room/disk" 6G
qemu-img convert -f raw -O qcow2 "$room/disk" "$folder/box.img"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 6}' >"$folder/metadata.json"
cp "$here/Vagrantfile" "$folder/Vagrantfile"
say "$(du -sm "$folder/box.img" | cut -f 1) MiB, Linux $release"
