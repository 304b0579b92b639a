"""The metadata services of cloudbase-init, which configures Windows guests; these parts of it run anywhere."""

import json
import sys

from cloudbaseinit import conf
from cloudbaseinit.metadata.services.ec2service import EC2Service
from cloudbaseinit.metadata.services.httpservice import HttpService

kind, base = sys.argv[1:]
conf.CONF([], project="cloudbase-init")
for group in ("openstack", "ec2"):
    conf.CONF.set_override("metadata_base_url", base, group)
    conf.CONF.set_override("add_metadata_private_ip_route", False, group)
conf.CONF.set_override("retry_count", 1)
service = {"openstack": HttpService, "ec2": EC2Service}[kind]()
assert service.load(), "it is not there"
found = {
    "instance-id": service.get_instance_id(),
    "hostname": service.get_host_name(),
    "keys": service.get_public_keys(),
    "user-data": service.get_user_data().decode(),
}
if kind == "openstack":
    found["addresses"] = [network.address_cidr for network in service.get_network_details_v2().networks]
print(json.dumps(found))
