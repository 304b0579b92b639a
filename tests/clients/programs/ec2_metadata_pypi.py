"""PyPI's ec2-metadata: its properties, each of which asks for what it is named after."""

import json

from ec2_metadata import ec2_metadata

macs = ec2_metadata.network_interfaces
(interface,) = macs.values()
print(
    json.dumps(
        {
            "instance-id": ec2_metadata.instance_id,
            "instance-type": ec2_metadata.instance_type,
            "image": ec2_metadata.ami_id,
            "account": ec2_metadata.account_id,
            "region": ec2_metadata.region,
            "zone": ec2_metadata.availability_zone,
            "hostname": ec2_metadata.private_hostname,
            "address": ec2_metadata.private_ipv4,
            "mac": ec2_metadata.mac,
            "macs": list(macs),
            "addresses": interface.private_ipv4s,
            "addresses-6": interface.ipv6s,
            "subnet": interface.subnet_ipv4_cidr_block,
            "user-data": ec2_metadata.user_data.decode(),
            "tags": dict(ec2_metadata.tags),
            "public-ipv4": ec2_metadata.public_ipv4,
            "role": ec2_metadata.iam_info,
        }
    )
)
