"""A session as programs make it. There is no role, and so there are no credentials: that has to be learnt soon."""

import json

import boto3

print(json.dumps({"credentials": boto3.Session().get_credentials()}))
