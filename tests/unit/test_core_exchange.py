"""A response that is to come: who is called, when, and once."""

from __future__ import annotations

from collections.abc import Callable

from shim.core.exchange import Pending, Response

WHOLE = Response(200, (), b"whole")


class Parts:
    """Parts of a body that tell when they are over."""

    def __init__(self) -> None:
        self.over: Callable[[], None] | None = None

    def when_over(self, call: Callable[[], None]) -> None:
        self.over = call

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


def waited(pending: Pending) -> list[object]:
    """What waits for it hears, in order."""
    heard: list[object] = []
    pending.when_over(lambda: heard.append("over"))
    pending.then(heard.append)
    return heard


def test_who_waits_is_called_where_the_response_comes() -> None:
    pending = Pending()
    heard = waited(pending)
    assert heard == [] and pending.response is None
    pending.settle(WHOLE)
    assert heard == ["over", WHOLE] and pending.response is WHOLE


def test_who_comes_late_is_called_at_once() -> None:
    pending = Pending()
    pending.settle(WHOLE)
    heard: list[object] = []
    pending.then(heard.append)
    assert heard == [WHOLE]


def test_it_is_over_when_its_parts_are() -> None:
    pending, parts = Pending(), Parts()
    heard = waited(pending)
    response = Response(200, (), parts=parts)
    pending.settle(response)
    assert heard == [response]
    pending.cancel()
    assert heard == [response], "the parts are given up by who reads them"
    assert parts.over is not None
    parts.over()
    assert heard == [response, "over"]


def test_parts_that_do_not_tell_hold_nothing() -> None:
    class Mute:
        def __aiter__(self) -> Mute:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

    pending = Pending()
    heard = waited(pending)
    pending.settle(Response(200, (), parts=Mute()))
    assert "over" in heard


def test_what_was_given_up_is_over_once_and_nobody_is_called() -> None:
    pending = Pending()
    heard = waited(pending)
    pending.cancel()
    pending.cancel()
    assert heard == ["over"]
    pending.settle(WHOLE)
    assert heard == ["over"]
