"""heat-cfntools' own look at Nova's metadata: what cfn-push-stats knows of the server that it runs on."""

import json
import pathlib

from heat_cfntools.cfntools.cfn_helper import Metadata

cache = pathlib.Path("nova_meta.json").absolute()
metadata = Metadata("stack", "resource")
print(json.dumps({"instance-id": metadata.get_nova_meta(str(cache))["uuid"]}))
