"""Ends a process whose event loop is blocked by one step, so that a supervisor starts the process again."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Final

# No step of a role blocks the loop for more than a few seconds. Load balancers notice a silent `/healthz` earlier.
BLOCKED_AFTER_S: Final = 30.0
CHECKS: Final = 10
EXIT_CODE: Final = 1

_log: Final = logging.getLogger(__name__)


@contextlib.contextmanager
def watching(loop: asyncio.AbstractEventLoop, blocked_after_s: float = BLOCKED_AFTER_S) -> Iterator[None]:
    """Watch a loop of this thread during the block, from another thread.

    If the loop runs no callback for `blocked_after_s`, the stack of this thread is logged and the process ends with
    `EXIT_CODE`. If a call into C also stops every other thread, `faulthandler` does the same after twice the time. That
    is wall-clock time: a process that SIGSTOP or `docker pause` stopped for longer ends too, and starts again.
    """
    stop = threading.Event()
    arguments = (loop, threading.get_ident(), blocked_after_s, stop)
    thread = threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(loop: asyncio.AbstractEventLoop, watched_thread: int, blocked_after_s: float, stop: threading.Event) -> None:
    fed = threading.Event()
    fed.set()
    missed = 0
    while True:
        faulthandler.dump_traceback_later(2 * blocked_after_s, exit=True)
        # Checks are counted, not seconds: a process that the system stopped for long has missed one check.
        missed = 0 if fed.is_set() else missed + 1
        if missed >= CHECKS:
            _end(watched_thread, blocked_after_s)
        fed.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(fed.set)
        if stop.wait(blocked_after_s / CHECKS):
            return


def _end(watched_thread: int, blocked_after_s: float) -> None:
    frame = sys._current_frames().get(watched_thread)  # noqa: SLF001  the only way to another thread's stack
    stack = "".join(traceback.format_stack(frame))
    _log.critical("the event loop is blocked for %g s, so this process ends; it was in:\n%s", blocked_after_s, stack)
    os._exit(EXIT_CODE)
