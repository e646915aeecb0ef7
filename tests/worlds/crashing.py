"""Wrappers that let a process end at any call of a store or of the log."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Coroutine, Generator
from typing import Any

from sinks.redis.fake import FakeLiveView
from tests.worlds.deployment import STORES


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """Wraps a store or the log. Several of them share a countdown of their calls.

    The n-th call raises `Crash` before it acts, or after. A call of a fake that works in steps, as a server does, may
    also end between two of its steps.
    """

    def __init__(self, inner: Any, countdown: list[int], *, after: bool) -> None:
        self._inner, self._countdown, self._after = inner, countdown, after

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name == "built":
            return lambda generation: Crashing(attribute(generation), self._countdown, after=self._after)
        if isinstance(self._inner, FakeLiveView) and name in STORES:
            return Crashing(attribute, self._countdown, after=self._after)
        if not inspect.iscoroutinefunction(attribute) or name == "close":
            return attribute

        async def call(*arguments: Any, **options: Any) -> Any:
            self._countdown[0] -= 1
            if not self._countdown[0] and not self._after:
                raise Crash
            answer = await _Steps(attribute(*arguments, **options), self._countdown)
            if not self._countdown[0]:
                raise Crash
            return answer

        return call


class CrashingStaging(Crashing):
    """Staging tables; the stores of these tables share the countdown."""

    def beside(self, tables: Collection[str]) -> Crashing:
        return Crashing(self._inner.beside(tables), self._countdown, after=self._after)


class _Steps:
    """Awaits a call and counts its steps; the last counted step raises `Crash`."""

    def __init__(self, call: Coroutine[Any, Any, Any], countdown: list[int]) -> None:
        self._call, self._countdown = call, countdown

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._countdown[0]:
            return (yield from self._call.__await__())
        while True:
            try:
                waited = self._call.send(None)
            except StopIteration as end:
                return end.value
            self._countdown[0] -= 1
            if not self._countdown[0]:
                self._call.close()
                raise Crash
            yield waited
