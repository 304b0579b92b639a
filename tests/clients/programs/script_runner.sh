#!/bin/bash
# What runs a guest's startup script on Google's machines.
google_metadata_script_runner startup >/run/said 2>&1
cat /run/started || cat /run/said
