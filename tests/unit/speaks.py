"""Runs the script that it is given: a module for what starts its children by `python -m`."""

import runpy
import sys

if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
