"""The JSON of `/v1/instances/<uuid>/why`, as shapes.py has the rest."""

from __future__ import annotations

from uuid import UUID

import msgspec

from shim.core.prospect import Course, Prospect, Rule


class WhyView(msgspec.Struct, frozen=True):
    """What a request of an instance's would get, and why: the rules in the order in which it meets them, up to the one
    that decides.

    tap       that it comes by, of the namespace `netns`; empty where no tap is the instance's
    supposed  without a tap: what would become of it from the proxy on, if there were one
    """

    instance: UUID
    family: str
    method: str
    target: str
    rules: tuple[Rule, ...]
    prospect: Prospect
    tap: str = ""
    netns: str = ""
    supposed: Course | None = None
