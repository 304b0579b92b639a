"""Guests that ask all the time, on kept connections and on new ones, and what went wrong for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from uuid import UUID

from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.talk import V4, V6, Talk

PATIENCE = 10.0
"""Of a client's: longer than its kernel needs to send again what was lost once."""


class Load:
    """While in the `with`: for each of `guests` (and whose it is) a kept connection and a series of new ones, in either
    family. `answers` counts, `failures` says what was no right answer."""

    def __init__(self, guests: dict[UUID, VethGuest], pause: float = 0.01) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._pause = pause
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(way, guest, str(instance), address))
            for instance, guest in guests.items()
            for way in (self._keep, self._renew)
            for address in (V4, V6)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.await_more(len(self._threads))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, answers: int = 100) -> None:
        """Wait until there were so many more answers."""
        want = self.answers + answers
        wait_until(lambda: self.answers >= want or bool(self.failures), f"{answers} answers", 60)

    def _guarded(self, way: Callable[[VethGuest, str, str], None], guest: VethGuest, want: str, address: str) -> None:
        while not self._over.is_set():
            try:
                way(guest, want, address)
            except Exception as error:  # noqa: BLE001 - whatever it is, the guest was not served
                self.failures.append(f"{time.monotonic():.3f} {way.__name__} {address}: {error!r}")
                time.sleep(0.1)

    def _keep(self, guest: VethGuest, want: str, address: str) -> None:
        with Talk(guest, address, PATIENCE) as talk:
            while not self._over.is_set():
                self._ask(talk, want)

    def _renew(self, guest: VethGuest, want: str, address: str) -> None:
        while not self._over.is_set():
            with Talk(guest, address, PATIENCE) as talk:
                self._ask(talk, want)

    def _ask(self, talk: Talk, want: str) -> None:
        answer = talk.ask()
        if answer.status != 200 or answer.body != want:
            raise AssertionError(f"{answer} instead of {want}")
        self.answers += 1
        time.sleep(self._pause)
