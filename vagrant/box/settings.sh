#!/bin/bash
# settings.sh ROOT: what makes a Debian system in the folder ROOT one that Vagrant can start and speak with.

set -euo pipefail
root=$1

# Vagrant's user, who may do all, with the key that everybody has: Vagrant logs in by it.
chroot "$root" useradd --create-home --shell /bin/bash vagrant
echo vagrant:vagrant | chroot "$root" chpasswd # without one, sshd takes the account for locked
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
chmod 440 "$root/etc/sudoers.d/vagrant"
install -d -m 700 "$root/home/vagrant/.ssh"
install -m 600 "$(ruby -e 'puts Gem::Specification.find_by_name("vagrant").gem_dir')/keys/vagrant.pub" \
    "$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
printf 'UseDNS no\nUsePAM no\n' >"$root/etc/ssh/sshd_config.d/vagrant.conf"

# The first interface is Vagrant's, by DHCP; it configures the others as it brings the machine up.
cat >"$root/etc/systemd/network/10-eth0.network" <<'END'
[Match]
Name=eth0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
[DHCPv4]
UseHostname=no
UseDNS=no
UseNTP=no
END
chroot "$root" systemctl --quiet enable systemd-networkd
chroot "$root" systemctl --quiet mask systemd-networkd-wait-online.service
echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
echo '/dev/vda / ext4 rw,noatime 0 0' >"$root/etc/fstab"

# There is nothing here for these to do, and where a processor is emulated each start counts.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service systemd-pstore.service systemd-timesyncd.service getty@tty1.service \
    modprobe@{configfs,dm_mod,drm,efi_pstore,fuse,loop}.service sys-fs-fuse-connections.mount \
    sys-kernel-config.mount dev-hugepages.mount systemd-logind.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
echo 'APT::Install-Recommends "false";' >"$root/etc/apt/apt.conf.d/90recommends"

# pip installs from here.
cat >"$root/etc/pip.conf" <<'END'
[global]
no-index = true
find-links = /opt/wheels
disable-pip-version-check = true
END
