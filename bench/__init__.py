"""What metashim costs, each figure beside a baseline of the same run: `python -m bench`, or `make bench`."""
