#!/bin/bash
# Run a command as if this were the guest's machine: on a copy of the file system that ends with it, with the files of
# a folder laid upon it, and with a firmware that says whose cloud this is.
#
#     room.sh FOLDER LAYER COMMAND...
#
# LAYER is a folder of packages that are installed there, or empty, FOLDER/files/ what is laid upon it all, FOLDER/dmi/
# firmware's words, one a file.
#
# To be run by `unshare --mount --uts --pid --fork --kill-child`, in the guest's network namespace: the command is the
# first process there, and whatever it starts ends with it.

set -euo pipefail
folder=$(realpath "$1")
layer=$2
shift 2
base=$folder/room
mkdir "$base"
mount -t tmpfs -o mode=755 room "$base"
mkdir "$base"/{upper,work,root}
[ -z "$layer" ] || cp -a "$layer"/{etc,usr} "$base/upper"
cp -a "$folder/files/." "$base/upper"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" room "$base/root"
root=$base/root
mount --rbind /dev "$root/dev"
mount -t proc room "$root/proc"
for top in run tmp var/lib/cloud; do # not the host's own: sockets, and what others keep there
    mkdir -p "$root/$top"
    mount -t tmpfs room "$root/$top"
done
rm -f "$root/.dockerenv" # machines have none
mkdir -p "$root/run/netns" "$root/.sys"
mount -t sysfs room "$root/.sys"
# The kernel shows firmware's words where there is such a firmware, and lets nobody write them.
mount -t tmpfs room "$root/sys"
mkdir -p "$root/sys/class/dmi/id"
for entry in "$root"/.sys/*; do
    [ "${entry##*/}" = class ] || ln -s "/.sys/${entry##*/}" "$root/sys/"
done
for entry in "$root"/.sys/class/*; do
    [ "${entry##*/}" = dmi ] || ln -s "/.sys/class/${entry##*/}" "$root/sys/class/"
done
cp -a "$folder/dmi/." "$root/sys/class/dmi/id"
cd /
exec chroot "$root" "$@"
