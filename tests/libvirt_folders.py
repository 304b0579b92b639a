"""What a libvirtd needs that is to see nothing of the host's own: folders of state, and its settings.

For tests/netns/libvirtd.py and for vagrant/, which is run by the system's Python: the standard library alone.
"""

from __future__ import annotations

from pathlib import Path

# The folders by the paths that they hide. The last is the last: what is mounted comes from elsewhere.
FOLDERS = {"lib": "/var/lib", "cache": "/var/cache", "log": "/var/log", "etc": "/etc/libvirt", "run": "/run"}
USERS = ("passwd", "group")
"""Files that hide those of /etc."""

_QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_LIBVIRTD_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
# Debian's libvirt looks for its own user even where another is configured; the package that makes it is not needed.
_MORE_USERS = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
}


def furnish(folder: Path) -> None:
    """Make FOLDERS and USERS in a folder, to be mounted over the paths that they hide."""
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    (folder / "etc/qemu.conf").write_text(_QEMU_CONF)
    (folder / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
    for name in USERS:
        text = Path("/etc", name).read_text()
        (folder / name).write_text(text if "libvirt-qemu:" in text else text + _MORE_USERS[name])
