"""All clients that are tried: the rows of README's table, in its order."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.client import (
    ANY,
    DEBIAN,
    EC2,
    GCE,
    NPM,
    OPENSTACK,
    PYPI,
    Client,
    Room,
    node,
    python,
)
from tests.clients.sites import (
    EMBEDDED,
    HOST,
    KEY,
    LINK_LOCAL,
    MAC,
    OFF,
    PROJECT,
    REQUIRED,
    USER_DATA,
    V4,
    V6,
    Truth,
)

OWN = (EMBEDDED,)
DUAL = (V4, V6)
ALL = (V4, V6, LINK_LOCAL)
V2 = (REQUIRED, OFF)
"""Works with tokens required and off: it brings one where it gets one."""
EC2_UUID = "ec2e1916-9099-7caf-fd21-012345abcdef\n"
HOSTS = "127.0.0.1 localhost\n169.254.169.254 metadata.google.internal metadata\n"
AMAZON = {"bios_vendor": "Amazon EC2\n", "sys_vendor": "Amazon EC2\n", "product_name": "Amazon EC2\n"}
GOOGLE = {"bios_vendor": "Google\n", "sys_vendor": "Google\n", "product_name": "Google Compute Engine\n"}
NOVA_S = {"sys_vendor": "OpenStack Foundation\n", "product_name": "OpenStack Nova\n"}


GCE_ID = "918196891886540032"
"""What follows from the first instance's uuid."""


# cloud-init.


def _cloud_config(datasource: str, urls: str) -> str:
    """A cloud image's own, upon Debian's: one data source, no DHCP, and of the modules those that make users."""
    return f"""\
datasource_list: [{datasource}]
datasource: {{{datasource}: {{{urls}, max_wait: 20, timeout: 5, retries: 2}}}}
network: {{config: disabled}}
cloud_init_modules: [set_hostname, users-groups, ssh]
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
"""


_EC2_TOO = "WARNING]: Failed fetching meta-data/ from url http://169.254.169.254/latest/meta-data/"
"""Its OpenStack source looks for EC2's metadata too, over IPv4 alone, and goes on without it."""


def _cloud_init_found(datasource: str, face: str, version: str) -> Any:
    """With the host name that it sets, and the key that it lets in."""

    def expect(truth: Truth) -> dict[str, Any]:
        instance = {OPENSTACK: str(truth.uuid), EC2: truth.ec2_id, GCE: GCE_ID}[face]
        return {
            "version": version,
            "datasource": datasource,
            "instance-id": instance,
            "hostname": "web-1",
            "keys": [] if face == GCE else [KEY],
            "user-data": USER_DATA,
            "warnings": [] if face != OPENSTACK or truth.address == V4 else [_EC2_TOO],
        }

    return expect


def _cloud_init_said(output: str) -> dict[str, Any]:
    first, _, told = output.partition("\n")
    found: dict[str, Any] = json.loads(told)
    return {"version": first.split()[-1].split("-")[0], **found}


def _cloud_init(datasource: str, face: str, version: str, dmi: dict[str, str], urls: str, **more: Any) -> Client:
    layer = {"22.4.2": "", "25.1.4": "trixie"}[version]
    return Client(
        f"cloud-init, {datasource}",
        f"{DEBIAN} 13" if layer else DEBIAN,
        "cloud-init",
        face,
        ("/bin/sh", "{programs}/cloud_init.sh"),
        _cloud_init_found(f"DataSource{datasource}", face, version),
        _cloud_init_said,
        room=Room(
            {"/etc/cloud/cloud.cfg.d/99_guest.cfg": _cloud_config(datasource, urls), "/etc/hosts": HOSTS}, dmi, layer
        ),
        **more,
    )


def _cloud_inits(version: str) -> list[Client]:
    urls = 'metadata_urls: ["{url}"]'
    firmware = {"product_uuid": EC2_UUID, "product_serial": EC2_UUID}
    gce = 'metadata_url: "{url}/computeMetadata/v1/"'
    return [
        _cloud_init("OpenStack", OPENSTACK, version, NOVA_S, urls, addresses=DUAL if version == "22.4.2" else ALL),
        _cloud_init("Ec2", EC2, version, firmware, urls, addresses=DUAL, tokens=(REQUIRED,), backends=OWN),
        _cloud_init(
            "GCE", GCE, version, GOOGLE, gce, backends=OWN,
            note="takes keys of its default user and of `cloudinit` alone; publishes host keys",
        ),
    ]


# Amazon's.


def _ids(truth: Truth) -> dict[str, Any]:
    return {"instance-id": truth.ec2_id, "type": truth.type}


def _token_ids(truth: Truth) -> dict[str, Any]:
    return {"token": True, **_ids(truth)}


def _described(truth: Truth) -> dict[str, Any]:
    """As OpenTelemetry describes an EC2 instance."""
    return {
        "cloud.provider": "aws",
        "cloud.platform": "aws_ec2",
        "cloud.account.id": PROJECT,
        "cloud.region": "eu-north-1",
        "cloud.availability_zone": truth.zone,
        "host.id": truth.ec2_id,
        "host.type": truth.type,
        "host.name": HOST,
    }


def _lines(output: str) -> dict[str, str]:
    """`name: value` lines, those that the tests know."""
    pairs = (line.split(": ", 1) for line in output.splitlines() if ": " in line)
    known = ("ami-id", "instance-id", "instance-type", "local-ipv4", "placement", "availability-zone")
    return {name.replace("placement", "availability-zone"): value for name, value in pairs if name in known}


def _ec2_lines(truth: Truth) -> dict[str, str]:
    return {
        "ami-id": truth.image,
        "instance-id": truth.ec2_id,
        "instance-type": truth.type,
        "local-ipv4": "10.0.0.5",
        "availability-zone": truth.zone,
    }


def _region_asked(output: str) -> bool:
    """Whether it went to the service's end point of the instance's own region, where nothing is."""
    return "https://ec2.eu-north-1.amazonaws.com/" in output


AWS = ("ec2", "describe-regions", "--no-sign-request", "--cli-connect-timeout", "2")
AWS_ENV = {"AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "{mode}"}
AWS_URL = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{url}"}


def _aws(command: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", f"{command} {' '.join(AWS)} 2>&1; true")


AMAZON_S = [
    Client(
        "botocore", PYPI, "botocore", EC2, python("botocore_imds.py"),
        lambda _: {"region": "eu-north-1", "credentials": None},
        addresses=DUAL, tokens=V2, backends=OWN, environment=AWS_ENV,
        note="region; no credentials, as there are no roles",
    ),
    Client(
        "boto3", PYPI, "boto3", EC2, python("boto3_session.py"), lambda _: {"credentials": None},
        addresses=DUAL, tokens=V2, environment=AWS_ENV, note="looks for a role's credentials, and goes on without",
    ),
    Client(
        "aws (version 2)", DEBIAN, "awscli", EC2, _aws("/usr/bin/aws"), lambda _: True, _region_asked,
        addresses=DUAL, tokens=V2, backends=OWN, environment=AWS_ENV, note="region",
    ),
    Client(
        "ec2-metadata", PYPI, "ec2-metadata", EC2, python("ec2_metadata_pypi.py"),
        lambda truth: {
            "instance-id": truth.ec2_id, "instance-type": truth.type, "image": truth.image, "account": PROJECT,
            "region": "eu-north-1", "zone": truth.zone, "hostname": HOST, "address": "10.0.0.5", "mac": MAC,
            "macs": [MAC], "addresses": ["10.0.0.5"], "addresses-6": ["fd00:1::5"], "subnet": "10.0.0.0/24",
            "user-data": USER_DATA, "tags": {"team": "shop"}, "public-ipv4": None, "role": None,
        },
        tokens=(REQUIRED,), backends=OWN,
    ),
    Client(
        "query-ec2-metadata", PYPI, "query-ec2-metadata", EC2, ("{python}/ec2-metadata", "instance-id"),
        lambda truth: truth.ec2_id, str.strip, tokens=(REQUIRED,),
    ),
    Client(
        "ec2metadata", PYPI, "ec2metadata", EC2, ("{python}/ec2metadata", "--instance-id"),
        lambda truth: truth.ec2_id, str.strip,
    ),
    Client(
        "ec2metadata", DEBIAN, "cloud-guest-utils", EC2, ("/usr/bin/ec2metadata",), _ec2_lines, _lines,
        tokens=(REQUIRED,),
    ),
    Client(
        "ec2-metadata", DEBIAN, "amazon-ec2-utils", EC2, ("{debian}/usr/bin/ec2-metadata",), _ec2_lines, _lines,
        tokens=(REQUIRED,),
    ),
    Client(
        "@aws-sdk/ec2-metadata-service", NPM, "@aws-sdk/ec2-metadata-service", EC2,
        node("npm.mjs", "ec2-metadata-service"), _ids, addresses=DUAL, tokens=V2, environment=AWS_URL,
    ),
    Client(
        "@smithy/credential-provider-imds", NPM, "@smithy/credential-provider-imds", EC2,
        node("npm.mjs", "credential-provider-imds"), lambda _: {"credentials": "ProviderError"},
        addresses=DUAL, tokens=(REQUIRED,), environment=AWS_ENV, note="learns at once that there is no role",
    ),
    Client(
        "aws-sdk (version 2)", NPM, "aws-sdk", EC2, node("npm.mjs", "aws-sdk"), _token_ids,
        addresses=DUAL, tokens=(REQUIRED,), environment=AWS_ENV,
    ),
    Client(
        "node-ec2-metadata", NPM, "node-ec2-metadata", EC2, node("npm.mjs", "node-ec2-metadata"),
        lambda truth: {"ec2": True, **_ids(truth)},
    ),
    Client(
        "OpenTelemetry's resource detector", PYPI, "opentelemetry-sdk-extension-aws", EC2, python("otel_aws.py"),
        _described, tokens=(REQUIRED,), backends=OWN,
    ),
    Client(
        "OpenTelemetry's resource detector", NPM, "@opentelemetry/resource-detector-aws", EC2,
        node("npm.mjs", "resource-detector-aws"), _described, tokens=(REQUIRED,), backends=OWN,
    ),
]  # fmt: skip


# What describes and configures machines of any cloud.


def _facter_ec2(output: str) -> dict[str, str]:
    facts = json.loads(output)
    return {
        "instance-id": facts["ec2_metadata"]["instance-id"],
        "key": facts["ec2_metadata"]["public-keys"]["0"]["openssh-key"],
        "user-data": facts["ec2_userdata"],
    }


def _ohai_ec2(output: str) -> dict[str, str]:
    found = json.loads(output)
    return {
        "instance-id": found["instance_id"],
        "key": found["public_keys_0_openssh_key"],
        "user-data": found["userdata"].strip(),
    }


def _ec2_facts(truth: Truth) -> dict[str, str]:
    return {"instance-id": truth.ec2_id, "key": KEY, "user-data": USER_DATA.strip()}


def _ansible_ec2(output: str) -> dict[str, str]:
    facts = json.loads(output[output.index("{") :])["ansible_facts"]
    return {
        "instance-id": facts["ansible_ec2_instance_id"],
        "key": facts["ansible_ec2_public_key"].strip(),
        "user-data": facts["ansible_ec2_user_data"].strip(),
    }


ANSIBLE = {"ANSIBLE_COLLECTIONS_PATHS": "{debian}/usr/lib/python3/dist-packages", "ANSIBLE_FORCE_COLOR": "0"}

SURVEYORS = [
    Client(
        "facter", DEBIAN, "facter", EC2, ("facter", "--json", "ec2_metadata", "ec2_userdata"), _ec2_facts, _facter_ec2,
        room=Room(dmi=AMAZON), tokens=V2,
    ),
    Client(
        "facter", DEBIAN, "facter", GCE, ("facter", "--json", "gce"), lambda _: ["web-1", "eu-north-1a", PROJECT],
        lambda output: [
            (gce := json.loads(output)["gce"])["instance"]["name"], gce["instance"]["zone"],
            gce["project"]["projectId"],
        ],
        room=Room({"/etc/hosts": HOSTS}, GOOGLE), backends=OWN,
    ),
    Client("ohai", DEBIAN, "ohai", EC2, ("ohai", "ec2"), _ec2_facts, _ohai_ec2, room=Room(dmi=AMAZON), tokens=V2),
    Client(
        "Ansible, amazon.aws.ec2_metadata_facts", DEBIAN, "ansible-core", EC2,
        ("ansible", "localhost", "-m", "amazon.aws.ec2_metadata_facts"), _ec2_facts, _ansible_ec2,
        environment=ANSIBLE,
    ),
    Client(
        "cloudbase-init", PYPI, "cloudbase-init", OPENSTACK, python("cloudbase_init.py", "openstack", "{url}/"),
        lambda truth: {
            "instance-id": str(truth.uuid), "hostname": truth.host, "keys": [KEY],
            "user-data": USER_DATA,
            "addresses": ["10.0.0.5/24", "fd00:1::5/64"] if truth.backend == EMBEDDED else ["10.0.0.5/24"],
        },
        addresses=DUAL, note="no password is taken by the documents",
    ),
    Client(
        "cloudbase-init", PYPI, "cloudbase-init", EC2, python("cloudbase_init.py", "ec2", "{url}/"),
        lambda truth: {
            "instance-id": truth.ec2_id, "hostname": truth.host,
            "keys": [KEY], "user-data": USER_DATA,
        },
        addresses=DUAL, tokens=(OFF,),
    ),
    Client(
        "os-collect-config", PYPI, "os-collect-config", EC2,
        (
            "{python}/os-collect-config", "--local-path", "{folder}/none", "--cachedir", "{folder}/cache", "--print",
            "ec2",
        ),
        lambda truth: [truth.ec2_id, KEY],
        lambda output: [
            (ec2 := json.loads(output)["ec2"])["instance-id"], ec2["public-keys"]["0"]["openssh-key"].strip(),
        ],
        tokens=(OFF,),
    ),
    Client(
        "heat-cfntools", PYPI, "heat-cfntools", OPENSTACK, python("cfntools.py"),
        lambda truth: {"instance-id": str(truth.uuid)},
    ),
]  # fmt: skip


# Google's.

GCE_ENV = {"GCE_METADATA_HOST": "{host}", "GCE_METADATA_IP": "{host}", "GCE_METADATA_ROOT": "{host}"}

GOOGLE_S = [
    Client(
        "google-auth", PYPI, "google-auth", GCE, python("google_auth.py"),
        lambda _: {
            "ping": True, "project": PROJECT, "role": "web", "instance": "web-1", "account": "TransportError",
            "zone": "eu-north-1a",
        },
        lambda output: (found := json.loads(output)) | {"zone": found["zone"].rpartition("/")[2]},
        addresses=DUAL, backends=OWN, environment=GCE_ENV, note="no service accounts",
    ),
    Client(
        "gcp-metadata", NPM, "gcp-metadata", GCE, node("npm.mjs", "gcp-metadata"),
        lambda _: {"available": True, "project": PROJECT, "name": "web-1", "role": "web", "tags": ["team=shop"]},
        lambda output: {name: value for name, value in json.loads(output).items() if name != "id"},
        addresses=DUAL, backends=OWN, environment=GCE_ENV,
    ),
    Client(
        "OpenTelemetry's resource detector", NPM, "@opentelemetry/resource-detector-gcp", GCE,
        node("npm.mjs", "resource-detector-gcp"),
        lambda _: {
            "cloud.provider": "gcp", "cloud.platform": "gcp_compute_engine", "cloud.account.id": PROJECT,
            "cloud.availability_zone": "eu-north-1a", "host.name": "web-1",
        },
        lambda output: {
            name: value for name, value in json.loads(output).items()
            if name not in ("host.id", "host.type", "cloud.region")
        },
        backends=OWN, environment=GCE_ENV,
    ),
    Client(
        "google-guest-agent", DEBIAN, "google-guest-agent", GCE, ("/bin/bash", "{programs}/guest_agent.sh"),
        lambda _: KEY, str.strip, room=Room({"/etc/hosts": HOSTS}, GOOGLE), backends=OWN,
        note="makes the users of the keys",
    ),
    Client(
        "google_metadata_script_runner", DEBIAN, "google-guest-agent", GCE,
        ("/bin/bash", "{programs}/script_runner.sh"), lambda _: "started\n", str,
        room=Room({"/etc/hosts": HOSTS}, GOOGLE), backends=OWN, note="runs the startup script",
    ),
]  # fmt: skip


# What scripts use: user-data of several segments, byte for byte.


def _fetches(
    name: str, origin: str, package: str, *argv: str, addresses: tuple[str, ...] = DUAL, url: str = "{url}"
) -> Client:
    return Client(
        name, origin, package, ANY, (*argv, f"{url}/latest/user-data"), lambda _: USER_DATA, str,
        addresses=addresses, tokens=(OFF,),
    )  # fmt: skip


FETCHERS = [
    _fetches("curl", DEBIAN, "curl", "curl", "-sSf", "-m", "5", addresses=ALL),
    _fetches("wget", DEBIAN, "wget", "wget", "-q", "-T", "5", "-t", "1", "-O", "-"),
    _fetches("busybox wget", DEBIAN, "busybox", "busybox", "wget", "-q", "-O", "-"),  # its -T crashes in Debian 12
    _fetches("Python's urllib", DEBIAN, "python3", "/usr/bin/python3", "{programs}/fetch_urllib.py"),
    _fetches("requests", PYPI, "requests", *python("fetch_requests.py")),
    _fetches("httpx", PYPI, "httpx", *python("fetch_httpx.py")),
    _fetches("aiohttp", PYPI, "aiohttp", *python("fetch_aiohttp.py")),
    _fetches("node's fetch", DEBIAN, "nodejs", *node("fetch.mjs", "fetch")),
    _fetches("node's http", DEBIAN, "nodejs", *node("fetch.mjs", "http")),
    _fetches("axios", NPM, "axios", *node("fetch.mjs", "axios")),
    _fetches("HTTP::Tiny", DEBIAN, "perl", "perl", "{programs}/fetch.pl", "tiny"),
    _fetches("LWP", DEBIAN, "libwww-perl", "perl", "{programs}/fetch.pl", "lwp"),
    _fetches("Ruby's Net::HTTP", DEBIAN, "ruby", "ruby", "{programs}/fetch.rb"),
]

CLIENTS = (*_cloud_inits("22.4.2"), *_cloud_inits("25.1.4"), *AMAZON_S, *GOOGLE_S, *SURVEYORS, *FETCHERS)
