"""OpenTelemetry's description of an EC2 instance, which goes with all that a service reports."""

import json

from opentelemetry.sdk.extension.aws.resource.ec2 import AwsEc2ResourceDetector

print(json.dumps(dict(AwsEc2ResourceDetector(raise_on_error=True).detect().attributes)))
