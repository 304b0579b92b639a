"""Whole hypervisors in virtual machines: boxes, a libvirtd of their own, the tests inside, one report."""
