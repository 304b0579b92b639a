"""What the AWS SDK for Python learns of the instance by itself: the region that it takes when nobody names one."""

import json
import os

from botocore.session import Session
from botocore.utils import IMDSRegionProvider

session = Session()
region = IMDSRegionProvider(session, os.environ).provide()
print(json.dumps({"region": region, "credentials": session.get_credentials()}))
