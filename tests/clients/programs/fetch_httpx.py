import sys

import httpx

sys.stdout.write(httpx.get(sys.argv[1], timeout=5).raise_for_status().text)
