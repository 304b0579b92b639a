"""What a backend is told of who asks, and what a guest must not tell it. PURE.

Theory of operation. A backend believes the headers that metashim adds, so none of a guest's own may be taken
for one of them, however the backend reads names. Many fold every character that is not a letter or digit into
`_` (CGI, RFC 3875, 4.1.18; WSGI; Rack; PHP), so `X_Instance_ID` and `X.Instance.ID` become `X-Instance-ID`:
therefore no name passes but of letters, digits and `-`, in which there is one spelling of each. Of these go
 - what was for this connection alone (RFC 9110, 7.6.1), and what the client side writes anew (Host, framing);
 - what some server or framework takes for who asks, or from where;
 - what some server takes for another path, method or host than those of the request line: routes were
   chosen, and signatures made, by the request line.
Credentials that the guest itself holds (Authorization, Cookie) pass: they say what the guest may say.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from uuid import UUID

from shim.core.exchange import Headers, Subject

SIGNATURE = b"X-Metashim-Signature"
NONCE_BYTES = 16

_NAME = re.compile(rb"[0-9a-z-]+")

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_WRITTEN_ANEW = frozenset((b"host", b"content-length", b"expect"))
_DROPPED = _HOP_BY_HOP | _WRITTEN_ANEW

# Each alternative is a whole name. `proxy` is httpoxy (CVE-2016-5385), X-Accel-* and X-Sendfile-* CVE-2025-61780,
# X-User-Id, X-Roles and their like Keystone's, -Ip the last word of every CDN's own name for the client's address.
_SAYS_WHO = rb"""
    x-(?:instance|tenant|project|metadata|metashim|forward|real-|client|remote|server|origin|cluster).*
  | x-(?:user|role|domain|identity|auth-request|authenticated|webauth|consumer|credential|service).*
  | x-(?:ssl|tls|envoy|azure|appengine|arr-|amzn-oidc|aws-ec2-metadata-token|ms-client-principal).*
  | x-goog-(?:iap|authenticated).* | forwarded.* | proxy.* | wl-proxy.* | via | cf-.*
  | (?:ssl-|tls-|)client-.* | remote-.*
  | .*-(?:ip|ipv6|addr|address|clientip|socketip)
"""
_ASKS_OTHERWISE = rb"""
    x-(?:original|rewrite|http|method|script-name|sendfile|accel).* | .*-(?:override|host) | script-name | max-forwards
"""
_NEVER = re.compile(rb"(?:" + _SAYS_WHO + rb"|" + _ASKS_OTHERWISE + rb")", re.VERBOSE)

_TRACE = (b"traceparent", b"tracestate")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
_TRACESTATE_MEMBER = re.compile(
    rb"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)
_TRACESTATE_MEMBERS = 32

# A guest repeats its headers for all its life. 512 of at most 1 KiB, as the parser remembers heads.
_MEMO = 512
_MEMO_BYTES = 1024
_known: dict[tuple[Headers, frozenset[bytes]], Headers] = {}

_NOBODY: frozenset[bytes] = frozenset()


def clean(headers: Headers, own: frozenset[bytes] = _NOBODY) -> Headers:
    """A guest's headers without any that a backend may take for ours, in order; names become lower-case.

    `own`: names (lower-case) of the identity headers that this backend is sent, `Identity.names`.
    """
    key = headers, own
    known = _known.get(key)
    if known is None:
        known = _clean(headers, own)
        if sum(len(name) + len(value) for name, value in headers) <= _MEMO_BYTES:
            if len(_known) >= _MEMO:
                del _known[next(iter(_known))]
            _known[key] = known
    return known


def _clean(headers: Headers, own: frozenset[bytes]) -> Headers:
    lowered = tuple((name.lower(), value) for name, value in headers)
    dropped = _DROPPED | own | _options(lowered)
    kept = tuple(field for field in lowered if field[0] not in dropped and not _misleads(field[0]))
    return kept if _trace_is_sound(kept) else tuple(field for field in kept if field[0] not in _TRACE)


def _options(headers: Headers) -> frozenset[bytes]:
    """The names that Connection headers list: those are for this connection alone."""
    lists = b",".join(value for name, value in headers if name == b"connection")
    return frozenset(option.strip(b" \t").lower() for option in lists.split(b","))


def _misleads(name: bytes) -> bool:
    return not _NAME.fullmatch(name) or _NEVER.fullmatch(name) is not None


def _trace_is_sound(headers: Headers) -> bool:
    """Whether traceparent and tracestate are as W3C Trace Context has them; a state without a parent is not."""
    parents = [value for name, value in headers if name == b"traceparent"]
    states = b",".join(value for name, value in headers if name == b"tracestate")
    if not parents:
        return not states
    return len(parents) == 1 and is_traceparent(parents[0]) and _is_state(states)


def is_traceparent(value: bytes) -> bool:
    """Whether it is a traceparent: the trace id is then its bytes 3 to 35."""
    # Later versions may add fields; version 00 has none (W3C Trace Context, 4.3).
    found = _TRACEPARENT.fullmatch(value)
    return found is not None and not (value.startswith(b"00") and found[1] is not None)


def _is_state(states: bytes) -> bool:
    members = [member for each in states.split(b",") if (member := each.strip(b" \t"))]
    keys = {member.partition(b"=")[0] for member in members}
    well_formed = all(_TRACESTATE_MEMBER.fullmatch(member) for member in members)
    return well_formed and len(keys) == len(members) <= _TRACESTATE_MEMBERS


def _sayable(text: str) -> str:
    """`text`, or nothing where a header's value cannot be that: then it counts as not known."""
    return text if text.isascii() and text.isprintable() and text == text.strip() else ""


@lru_cache(maxsize=4096)
def nova_headers(subject: Subject, secret: bytes) -> Headers | None:
    """What Nova's metadata API wants to be told, signed. None where no project is known: it would answer 404."""
    project = _sayable(subject.project)
    if not project:
        return None
    instance = str(subject.instance).encode()
    signature = hmac.digest(secret, instance, "sha256").hex().encode()
    headers = (
        (b"X-Instance-ID", instance),
        (b"X-Instance-ID-Signature", signature),
        (b"X-Tenant-ID", _keystone_id(project).encode()),
    )
    address = _ip_address(subject.address)
    return (*headers, (b"X-Forwarded-For", address)) if address else headers


_DASHED_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def _keystone_id(project: str) -> str:
    """Keystone writes ids without dashes, and Nova compares text."""
    return UUID(project).hex if _DASHED_UUID.fullmatch(project) else project


def _ip_address(text: str) -> bytes:
    try:
        return str(ip_address(_sayable(text))).encode()
    except ValueError:
        return b""


class Identity:
    """Who asks, as a generic backend is told: one for each backend.

    `templates` are header names and their values, in which {instance}, {project} and {address} stand for the
    subject's; a header that comes out empty is left out. Raises ValueError for a name or template that cannot be.
    """

    def __init__(self, templates: Mapping[str, str], secret: bytes) -> None:
        for name, template in templates.items():
            check_template(name, template)
        self._templates = tuple((name.encode(), template) for name, template in templates.items())
        self._inner, self._outer = _hmac_states(secret)
        self.names = frozenset(name.lower() for name, _ in self._templates)
        self.headers = lru_cache(maxsize=4096)(self._headers)
        """The headers of a subject, without the signature: `headers(subject)`."""

    def _headers(self, subject: Subject) -> Headers:
        facts = _facts(subject)
        rendered = ((name, template.format_map(facts).strip().encode()) for name, template in self._templates)
        return tuple(field for field in rendered if field[1])

    def signature(
        self, subject: Subject, method: bytes, target: bytes, now: float, nonce: bytes
    ) -> tuple[bytes, bytes]:
        """The signature header of one request: see docs/signature.md. `now` is Unix time, `nonce` 16 random bytes."""
        t, n = b"%d" % now, nonce.hex().encode()
        said = _signed_subject(subject), method, target, t, n
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(b"\n".join(said))
        outer.update(inner.digest())
        return SIGNATURE, b"v1 t=%b n=%b s=%b" % (t, n, outer.hexdigest().encode())


def _hmac_states(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """What HMAC (RFC 2104) has after the key: copying these takes half the time of copying an hmac object."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in block) for pad in (0x36, 0x5C))
    return hashlib.sha256(inner), hashlib.sha256(outer)


def _facts(subject: Subject) -> dict[str, str]:
    return {
        "instance": str(subject.instance),
        "project": _sayable(subject.project),
        "address": _ip_address(subject.address).decode(),
    }


@lru_cache(maxsize=4096)
def _signed_subject(subject: Subject) -> bytes:
    """The first lines of what is signed. No value holds a line end, so no two requests sign alike."""
    return f"v1\n{subject.instance}\n{_sayable(subject.project)}".encode()


_TEMPLATE = re.compile(r"(?:[ -z|~]|\{(?:instance|project|address)\})*")


def check_template(name: str, template: str) -> None:
    """Raises ValueError, which says what is allowed, for an identity header that cannot be sent."""
    lowered = name.lower().encode()
    if not _NAME.fullmatch(lowered):
        raise ValueError(f"{name!r} is not a header name of letters, digits and -")
    if lowered in _DROPPED or lowered == SIGNATURE.lower():
        raise ValueError(f"{name} is not for operators to set")
    if not _TEMPLATE.fullmatch(template):
        raise ValueError(f"{name}: {template!r} is not ASCII text with {{instance}}, {{project}} or {{address}} in it")
