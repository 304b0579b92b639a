"""metashim: metadata for every guest of a hypervisor, told apart by the tap it speaks through."""

__version__ = "0.1.0"
