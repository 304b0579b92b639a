"""One nftables table: whole rulesets through nft(8), single elements and chains by nfnetlink; and who else changes it.

See Tables in shim/datapath/base.py for the methods. Only tables of our own names are ever touched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext

from shim.core.table import Element, Hook, Piece
from shim.errors import KernelError
from shim.netlink import nfnl, rtnl
from shim.netlink.tc import kernel_errors

# linux/netfilter/nf_tables.h
_GETTABLE, _DELTABLE = 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _GETRULE = 3, 4, 5, 6, 7
_NEWELEMENT, _GETELEMENT, _DELELEMENT, _NEWGEN, _GETGEN = 12, 13, 14, 15, 16
_TABLE, _NAME = 1, 2  # of chains and of element lists (there: the set)
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE = 1, 2, 3
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_LIST_ELEMENTS, _ITEM = 3, 1
_KEY, _DATA, _USERDATA, _EXPRESSION, _EXPRESSIONS = 1, 2, 6, 7, 11
_VALUE, _VERDICT, _CODE, _CHAIN = 1, 2, 1, 2
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_REGISTER_VERDICT, _IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 0, 1, 2
_JUMP, _GOTO = -3, -4
_COUNTER_PACKETS = 2
_GENERATION_ID, _GENERATION_PID = 1, 2
_COMMENT_MAX = 127

_NFTABLES_EVENTS = 1 << 6  # NFNLGRP_NFTABLES, as a bit
_RECEIVE_BYTES = 1 << 18

_NFT_SECONDS = 60
INSTALL = "apt install nftables"


def load(ruleset: str) -> None:
    """Hands a ruleset to `nft -f -`. Raises KernelError with what nft said."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=ruleset, capture_output=True, text=True, timeout=_NFT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"nft(8) cannot be run: {error}", INSTALL) from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[:6])
        raise KernelError(f"nft(8) refused the rules:\n{said}", "see `metashim rules` and `metashim check`")


class Nftables:
    """One table, of the family netdev unless told otherwise, in the network namespace that `enter` leads to."""

    def __init__(self, table: str, family: str = "netdev", enter: rtnl.Enter = nullcontext) -> None:
        self._table = table
        self._enter = enter
        self._socket = nfnl.Socket(nfnl.FAMILIES[family], enter)

    def load(self, text: str) -> None:
        with self._enter():
            load(text)

    def change(self, remove: Iterable[Piece], add: Iterable[Piece]) -> None:
        changes = [change for piece in remove for change in self._removal(piece)]
        changes += [change for piece in add for change in self._addition(piece)]
        if changes:
            with kernel_errors(f"cannot change the nftables table {self._table}"):
                self._socket.transaction(changes)

    def _removal(self, piece: Piece) -> list[tuple[int, int, bytes]]:
        if isinstance(piece, Hook):
            return [(_DELCHAIN, 0, nfnl.text(_TABLE, self._table) + nfnl.text(_CHAIN_NAME, piece.chain))]
        return [(_DELELEMENT, 0, self._listed(piece.set, nfnl.nest(_KEY, nfnl.attribute(_VALUE, piece.key))))]

    def _addition(self, piece: Piece) -> list[tuple[int, int, bytes]]:
        if isinstance(piece, Element):
            return [(_NEWELEMENT, nfnl.CREATE, self._listed(piece.set, _element(piece)))]
        place = nfnl.nest(
            _CHAIN_HOOK,
            nfnl.number(_HOOK_NUMBER, 0),
            nfnl.number(_HOOK_PRIORITY, piece.priority),
            nfnl.text(_HOOK_DEVICE, piece.device),
        )
        table, chain = nfnl.text(_TABLE, self._table), nfnl.text(_CHAIN_NAME, piece.chain)
        rule = nfnl.nest(_RULE_EXPRESSIONS, nfnl.nest(_ITEM, *_goto(piece.goto)))
        return [
            (_NEWCHAIN, nfnl.CREATE, table + chain + place + nfnl.text(_CHAIN_TYPE, "filter")),
            (_NEWRULE, nfnl.CREATE | nfnl.APPEND, table + nfnl.text(_RULE_CHAIN, piece.chain) + rule),
        ]

    def _listed(self, name: str, element: bytes) -> bytes:
        """The one element, of a list of one set."""
        return self._set(name) + nfnl.nest(_LIST_ELEMENTS, nfnl.nest(_ITEM, element))

    def _set(self, name: str) -> bytes:
        return nfnl.text(_TABLE, self._table) + nfnl.text(_NAME, name)

    def elements(self, name: str) -> list[Element] | None:
        try:
            with kernel_errors(f"cannot read the set {name} of {self._table}"):
                bodies = self._socket.dump(_GETELEMENT, self._set(name))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        lists = [rtnl.attributes(body).get(_LIST_ELEMENTS, b"") for body in bodies]
        return [_read_element(name, raw) for each in lists for raw in nfnl.items(each)]

    def hooks(self) -> dict[str, str]:
        with kernel_errors("cannot list the chains of nftables"):
            bodies = self._socket.dump(_GETCHAIN, b"")
        found = {}
        for chain in map(rtnl.attributes, bodies):
            device = _device(chain)
            if rtnl.text(chain[_TABLE]) == self._table and device is not None:
                found[rtnl.text(chain[_CHAIN_NAME])] = device
        return found

    def device_of(self, chain: str) -> str | None:
        with kernel_errors(f"cannot read the chain {chain} of {self._table}"):
            body = self._socket.ask(_GETCHAIN, nfnl.text(_TABLE, self._table) + nfnl.text(_CHAIN_NAME, chain))
        return None if body is None else _device(rtnl.attributes(body)) or ""

    def rules(self) -> int:
        with kernel_errors(f"cannot list the rules of {self._table}"):
            return len(self._socket.dump(_GETRULE, nfnl.text(_TABLE, self._table)))

    def generation(self) -> int:
        with kernel_errors("cannot ask for the generation of nftables"):
            body = self._socket.ask(_GETGEN, b"")
        return int.from_bytes(rtnl.attributes(body or b"").get(_GENERATION_ID, b""), "big")

    def packets(self, name: str, key: bytes) -> int | None:
        with kernel_errors(f"cannot read the counters {name} of {self._table}"):
            body = self._socket.ask(
                _GETELEMENT, self._listed(name, nfnl.nest(_KEY, nfnl.attribute(_VALUE, key)))
            )
        if body is None:
            return None
        element = rtnl.attributes(next(nfnl.items(rtnl.attributes(body)[_LIST_ELEMENTS])))
        return _counted(element)

    def exists(self) -> bool:
        """Whether the table is there."""
        with kernel_errors("cannot look for a table of nftables"):
            return self._socket.ask(_GETTABLE, nfnl.text(_TABLE, self._table)) is not None

    def delete(self) -> None:
        try:
            if self.exists():
                with kernel_errors(f"cannot delete the nftables table {self._table}"):
                    self._socket.transaction([(_DELTABLE, 0, nfnl.text(_TABLE, self._table))])
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
                raise

    def close(self) -> None:
        """Lets go of the socket."""
        self._socket.close()


def _device(chain: Mapping[int, bytes]) -> str | None:
    """The device that a chain is on; None for one that is on none."""
    raw = rtnl.attributes(chain.get(_CHAIN_HOOK, b"")).get(_HOOK_DEVICE)
    return None if raw is None else rtnl.text(raw)


def _element(element: Element) -> bytes:
    raw = nfnl.nest(_KEY, nfnl.attribute(_VALUE, element.key))
    if element.data is not None:
        raw += nfnl.nest(_DATA, nfnl.attribute(_VALUE, element.data))
    if element.jump:
        raw += nfnl.nest(_DATA, _verdict(_JUMP, element.jump))
    if element.comment:
        comment = element.comment.encode()[:_COMMENT_MAX] + b"\0"
        raw += nfnl.attribute(_USERDATA, bytes([0, len(comment)]) + comment)
    return raw


def _verdict(code: int, chain: str) -> bytes:
    return nfnl.nest(_VERDICT, nfnl.number(_CODE, code), nfnl.text(_CHAIN, chain))


def _goto(chain: str) -> Iterator[bytes]:
    """The expression of a rule that goes to a chain."""
    yield nfnl.text(_EXPRESSION_NAME, "immediate")
    data = nfnl.nest(_IMMEDIATE_DATA, _verdict(_GOTO, chain))
    yield nfnl.nest(_EXPRESSION_DATA, nfnl.number(_IMMEDIATE_REGISTER, _REGISTER_VERDICT), data)


def _read_element(name: str, raw: bytes) -> Element:
    found = rtnl.attributes(raw)
    data = rtnl.attributes(found.get(_DATA, b""))
    verdict = rtnl.attributes(data.get(_VERDICT, b""))
    userdata = found.get(_USERDATA, b"")
    comment = userdata[2 : 2 + userdata[1]] if len(userdata) > 1 and userdata[0] == 0 else b""
    key = rtnl.attributes(found[_KEY])[_VALUE]
    return Element(name, key, data.get(_VALUE), rtnl.text(verdict.get(_CHAIN, b"")), rtnl.text(comment))


def _counted(element: dict[int, bytes]) -> int:
    """The packets of the counter that an element has; 0 for one without."""
    expressions = [element[_EXPRESSION]] if _EXPRESSION in element else nfnl.items(element.get(_EXPRESSIONS, b""))
    for raw in expressions:
        expression = rtnl.attributes(raw)
        if rtnl.text(expression[_EXPRESSION_NAME]) == "counter":
            counter = rtnl.attributes(expression[_EXPRESSION_DATA])
            return int.from_bytes(counter[_COUNTER_PACKETS], "big")
    return 0


class Watch:
    """Hears of others' transactions that change tables of ours: `flush ruleset`, say. `wake` is called after each."""

    def __init__(self, tables: frozenset[str], wake: Callable[[], None], enter: rtnl.Enter = nullcontext) -> None:
        self._tables = tables
        self._enter = enter
        self._wake = wake
        self._ours = False
        self._pid = os.getpid()

    async def run(self) -> None:
        """Watches until cancelled; what got lost counts as a change."""
        loop = asyncio.get_running_loop()
        while True:
            with subscribe(self._enter) as events:
                try:
                    while True:
                        self.take(await loop.sock_recv(events, _RECEIVE_BYTES))
                except OSError:
                    self._wake()

    def take(self, data: bytes) -> None:
        """Learns from what the kernel sent: the changes of a transaction, then who made it."""
        for kind, _, _, body in rtnl.messages(data):
            found = rtnl.attributes(body[nfnl.GENERIC_BYTES :])
            if kind & 0xFF != _NEWGEN:
                self._ours = self._ours or rtnl.text(found.get(_TABLE, b"")) in self._tables
                continue
            foreign = struct.unpack(">I", found.get(_GENERATION_PID, bytes(4)))[0] != self._pid
            if self._ours and foreign:
                self._wake()
            self._ours = False


def subscribe(enter: rtnl.Enter = nullcontext) -> socket.socket:
    """A socket on which the kernel tells of every change of nftables. It does not block."""
    return rtnl.subscribe(_NFTABLES_EVENTS, nfnl.NETLINK_NETFILTER, enter)
