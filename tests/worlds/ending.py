"""A wrapper that lets a process end at one of the writing calls of its stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Ends(BaseException):
    """The process ends here."""


class Ending:
    """Wraps a store. The n-th writing call of all that share a countdown ends the process, before it acts or after."""

    def __init__(self, inner: Any, countdown: list[int], is_writing: Callable[[str], bool], *, after: bool) -> None:
        self._inner, self._countdown, self._is_writing, self._after = inner, countdown, is_writing, after

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not self._is_writing(name):
            return attribute

        async def call(*arguments: Any, **options: Any) -> Any:
            self._countdown[0] -= 1
            if not self._countdown[0] and not self._after:
                raise Ends
            answer = await attribute(*arguments, **options)
            if not self._countdown[0]:
                raise Ends
            return answer

        return call
