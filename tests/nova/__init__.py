"""The real Nova's metadata API, for tests: in a virtual environment of its own, its instances in memory."""
