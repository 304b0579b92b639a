"""Google's library for authentication: is this one of its machines, and what is it."""

import json

import requests
from google.auth.compute_engine import _metadata
from google.auth.exceptions import TransportError
from google.auth.transport.requests import Request

request = Request(requests.Session())


def account() -> object:
    try:
        return _metadata.get_service_account_info(request)
    except TransportError as error:
        return type(error).__name__


print(
    json.dumps(
        {
            "ping": _metadata.ping(request),
            "project": _metadata.get_project_id(request),
            "role": _metadata.get(request, "instance/attributes/role"),
            "zone": _metadata.get(request, "instance/zone"),
            "instance": _metadata.get(request, "instance/", recursive=True)["name"],
            "account": account(),
        }
    )
)
