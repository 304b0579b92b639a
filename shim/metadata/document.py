"""An instance's document: what an operator writes for a guest, and all faces are made from. PURE."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta, Struct

from shim.errors import InputError
from shim.metadata import network, rules
from shim.metadata.network import Network, Route

DOCUMENT_BYTES = 262_144
"""The largest document: user-data at its limit, vendor data, and ample room."""

_LINES = ("project_id", "name", "instance_type", "image_id", "availability_zone", "region")


class Document(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of an instance beside its id. `Document()` is what one without a document gets.

    `hostname` defaults to `name` where that is a host name. `tags` are served only with
    `tags_in_metadata`, as on EC2. `user_data` is text, `user_data_base64` any bytes: one of the two.
    `vendor_data` and `vendor_data2` are any JSON.
    """

    project_id: str | None = None
    name: str | None = None
    hostname: str | None = None
    fqdn: str | None = None
    instance_type: str | None = None
    image_id: str | None = None
    availability_zone: str | None = None
    region: str | None = None
    launch_index: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    meta: dict[str, str] = {}
    tags: dict[str, str] = {}
    tags_in_metadata: bool = False
    public_keys: dict[str, str] = {}
    user_data: str | None = None
    user_data_base64: str | None = None
    vendor_data: Any = None
    vendor_data2: Any = None
    networks: tuple[Network, ...] = ()

    def completed(self, name: str, flavor: str) -> Document:
        """This document, with a name and an instance type that others know of, where it has none itself."""
        name = "" if self.name else _fit(name)
        flavor = "" if self.instance_type else _fit(flavor)
        if not name and not flavor:
            return self
        return msgspec.structs.replace(self, name=name or self.name, instance_type=flavor or self.instance_type)

    @property
    def host(self) -> str | None:
        """The host name without a domain of its own."""
        if self.hostname:
            return self.hostname
        if self.fqdn:
            return self.fqdn.partition(".")[0]
        return self.name if self.name and rules.is_host_name(self.name) else None

    @property
    def full_host(self) -> str | None:
        """The host name with its domain, as far as known."""
        return self.fqdn or self.host

    @property
    def address(self) -> str | None:
        """The first IPv4 address of the networks, without its prefix length."""
        found = next((one for network in self.networks for one in network.interfaces(4)), None)
        return str(found.ip) if found else None

    @property
    def user_bytes(self) -> bytes | None:
        """The user-data, byte for byte; None when there is none."""
        if self.user_data_base64 is not None:
            return rules.user_data_base64("user_data_base64", self.user_data_base64)
        return self.user_data.encode() if self.user_data is not None else None


def decode(raw: bytes) -> Document:
    """The document in `raw`, a JSON object. Raises InputError: which field, what is allowed, what to do."""
    if len(raw) > DOCUMENT_BYTES:
        raise InputError(
            f"the document has {len(raw)} bytes; {DOCUMENT_BYTES} are the most",
            "shorten its user-data or vendor data",
        )
    plain = _parse(raw)
    _refuse_unknown(plain)
    document = _convert(plain)
    _check(document)
    return document


def restore(raw: bytes) -> Document:
    """A document that `decode` took before: its shape is checked, its values are not, for speed."""
    try:
        return msgspec.json.decode(raw, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not a document of this version: {error}", "upgrade metashim") from None


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        plain = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "correct it there; `metashim set` also takes TOML"
        raise InputError(f"the document is not JSON: {error}", hint) from None
    except RecursionError:
        raise InputError("the document is nested too deeply", "flatten its vendor data") from None
    if not isinstance(plain, dict):
        raise InputError("the document is not an object", 'write {"name": "web-1", ...}')
    return plain


def _refuse_unknown(plain: dict[str, Any]) -> None:
    """Look for misspelt fields first: the nearest known name says more than a type error does."""
    _only_known("", plain, Document)
    for number, one in enumerate(_objects(plain.get("networks"))):
        where = f"networks[{number}]"
        _only_known(f"{where}.", one, Network)
        for count, route in enumerate(_objects(one.get("routes"))):
            _only_known(f"{where}.routes[{count}].", route, Route)


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, an empty one in the place of what is none (the types are checked later)."""
    return [one if isinstance(one, dict) else {} for one in value] if isinstance(value, list) else []


def _only_known(prefix: str, plain: dict[str, Any], shape: type[Struct]) -> None:
    known = shape.__struct_fields__
    for field in plain:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(known)}"
            raise InputError(f"{prefix}{field[:80]}: there is no such field", hint)


def _convert(plain: dict[str, Any]) -> Document:
    try:
        return msgspec.convert(plain, Document)
    except msgspec.ValidationError as error:
        _refuse_type(str(error))


def _refuse_type(message: str) -> NoReturn:
    """msgspec says "Expected `int`, got `str` - at `$.networks[0].mtu`"."""
    what, _, place = message.partition(" - at `$")
    field = place.rstrip("`").lstrip(".") or "the document"
    text = re.sub("`(.*?)`", r"\1", what)
    raise InputError(f"{field}: {text[:1].lower()}{text[1:]}", "see the fields of a document in the README")


def _fit(text: str) -> str:
    """A line that others said, or nothing where no document could hold it."""
    try:
        rules.line("", text)
    except InputError:
        return ""
    return text


def _check(document: Document) -> None:
    for field in _LINES:
        value = getattr(document, field)
        if value is not None:
            rules.line(field, value)
    for field in ("hostname", "fqdn"):
        value = getattr(document, field)
        if value is not None:
            rules.host_name(field, value)
    for key, value in document.tags.items():
        rules.tag("tags", key, value)
    for name, key in document.public_keys.items():
        rules.public_key("public_keys", name, key)
    _check_user_data(document)
    network.check(document.networks)


def _check_user_data(document: Document) -> None:
    if document.user_data is None:
        if document.user_data_base64 is not None:
            rules.user_data_base64("user_data_base64", document.user_data_base64)
        return
    if document.user_data_base64 is not None:
        rules.refuse("user_data_base64", "is given beside user_data", "keep one of the two")
    rules.user_data_size("user_data", document.user_data.encode())
