"""Guests that ask for what is not yet so: how long they wait, and for what; and the events of a stream. PURE."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass

from shim.core.exchange import Request, Response
from shim.metadata import gce
from shim.metadata.parts import is_text
from shim.metadata.target import Parameters, parameters, says
from shim.metadata.tree import plain
from shim.metadata.view import Rendered

SECONDS_MAX = 300.0

_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_STREAM = b"text/event-stream"
_NO_QUALITY = re.compile(rb"q=0(?:\.0*)?")
_ETAG_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Wait:
    """How a GET is to be answered: once what is asked for has another tag than `etag`, or after `seconds` (0 to 300).

    etag           what the guest has, without quotes; None, or what was never a tag (GCE's `NONE` and `0`): nothing
    gce            Google's way: when the time is over, 200 and what there is; else 304
    sse            a stream of events, one for each state; `last_event_id` is the tag of the last one that the guest has
    from_now       the guest has what there is when it asks, whatever that is
    """

    etag: str | None
    seconds: float
    gce: bool = False
    sse: bool = False
    last_event_id: str | None = None
    from_now: bool = False

    def is_over(self, etag: str) -> bool:
        """Whether what has this tag now (empty: an error) is answered at once."""
        return not etag or (etag != self.etag and not self.from_now)


def wait_of(request: Request) -> Wait | Response | None:
    """How long the guest wants to wait, and for what; None if it does not. The Response is 400.

    `?wait=SECONDS&etag=E` on any face, `?wait_for_change=true&last_etag=E&timeout_sec=N` on GCE's, and
    `Accept: text/event-stream`, which is for ever unless `wait` says otherwise (`seconds` is 300 then).
    """
    if request.method != b"GET":
        return None
    is_gce = gce.is_below(request.path)
    query = parameters(request.query) if request.query else {}
    try:
        if is_gce and says(query, "wait_for_change", "true"):
            return _of_gce(query)
        return _of_own(query, request)
    except ValueError as error:
        refusal = plain(400, f"{error}\n".encode())
        return gce.flavored(refusal) if is_gce else refusal


def event(rendered: Rendered) -> bytes:
    """One state as an event (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Its id is the tag, its data the body by lines; a body that is no text, or holds what a stream cannot carry, is in
    base64 as an event `base64`. What reading uses up is not in a stream: an event `once` stands for it. What is no 200
    is an event `status` with its number.
    """
    response = rendered.response
    if response.status != 200:
        return b"event: status\ndata: %d\n\n" % response.status
    head = f"id: {rendered.etag}\n".encode()
    if rendered.claims:
        return head + b"event: once\ndata:\n\n"
    body = response.body
    if b"\r" in body or not is_text(body):
        return head + b"event: base64\ndata: " + b64encode(body) + b"\n\n"
    return head + b"".join(b"data: " + line + b"\n" for line in body.split(b"\n")) + b"\n"


def _of_gce(query: Parameters) -> Wait:
    seconds = _seconds(query, "timeout_sec")
    last = _tag(query, "last_etag")
    return Wait(last, SECONDS_MAX if seconds is None else seconds, gce=True, from_now=last is None)


def _of_own(query: Parameters, request: Request) -> Wait | None:
    seconds = _seconds(query, "wait")
    is_stream = _accepts_stream(request)
    if seconds is None and not is_stream:
        return None
    last = request.header(b"last-event-id") if is_stream else None
    return Wait(
        _tag(query, "etag"),
        SECONDS_MAX if seconds is None else seconds,
        sse=is_stream,
        last_event_id=_bare(last.decode("latin-1")) if last is not None else None,
    )


def _seconds(query: Parameters, name: str) -> float | None:
    text = _only(query, name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{name} takes a number of seconds, 0 to {SECONDS_MAX:.0f}")
    return min(float(text), SECONDS_MAX)


def _tag(query: Parameters, name: str) -> str | None:
    text = _only(query, name)
    return None if text is None else _bare(text)


def _only(query: Parameters, name: str) -> str | None:
    values = query.get(name, [])
    if len(values) > 1:
        raise ValueError(f"{name} is there twice")
    return values[0] if values else None


def _bare(text: str) -> str:
    """A tag without its quotes; one that is too long to be ours is cut."""
    return text.strip().removeprefix("W/").strip('"')[:_ETAG_CHARACTERS]


def _accepts_stream(request: Request) -> bool:
    for name, value in request.headers:
        if name == b"accept" and _STREAM in value.lower():
            for item in value.lower().split(b","):
                kind, *options = (one.strip() for one in item.split(b";"))
                if kind == _STREAM and not any(_NO_QUALITY.fullmatch(one) for one in options):
                    return True
    return False
