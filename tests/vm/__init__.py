"""Real guests: QEMU machines with kernels of their own, on real taps of a lab's hypervisor."""
