import sys

import requests

reply = requests.get(sys.argv[1], timeout=5)
reply.raise_for_status()
sys.stdout.write(reply.text)
