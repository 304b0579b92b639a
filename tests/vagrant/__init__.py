"""A whole hypervisor: metashim as an admin installed it, run by systemd as PID 1, on a kernel of its own.

These tests change the machine that they run on. `vagrant/run` makes one for them, and calls `inside` there; anywhere
else nothing here is collected.
"""
