"""Real guests: QEMU machines with kernels of their own, on real taps of a lab's hypervisor.

`tiny` boots Debian's kernel with busybox and runs a script: for what packets do, and whatever needs many boots. What is
built for guests is kept outside the tree (`cache`); `accel` says whether they are emulated. None of this runs with the
other tiers, as it takes minutes: `make test-vm`.
"""
