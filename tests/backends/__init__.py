"""Backends to forward to, for tests: nginx and haproxy with settings of their own, and one that does anything."""
