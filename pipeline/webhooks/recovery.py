"""Keeps the side tables complete although webhooks are lost: walks at the start, regularly, and when the canary is
silent."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pipeline.webhooks.walker import Canary, Walked, Walker
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient

WALK_INTERVAL_S: Final = 300
# While the canary sings, webhooks arrive, and Stripe's allocation of reads is spared.
CALM_WALK_INTERVAL_S: Final = 900
CANARY_INTERVAL_S: Final = 900
RETRY_INTERVAL_S: Final = 3_600
PAUSE_S: Final = 5.0

_log: Final = logging.getLogger(__name__)


class Recovery:
    """The walks, the canary and the retries of a deployment, in the process that owns the first partition.

    What is due is taken from the times in SQL, so a process that restarts again and again asks Stripe no more often.
    """

    def __init__(
        self,
        walker: Walker,
        canary: Canary | None,
        clock: Clock,
        is_owner: Callable[[], bool],
        retry: Callable[[], Awaitable[int]],
    ) -> None:
        """`retry` has processed again what was set aside, and what is overdue; it returns how many."""
        self._walker = walker
        self._canary = canary
        self._clock = clock
        self._is_owner = is_owner
        self._retry = retry
        self._is_resumed = False
        self._walk_due_s = self._canary_due_s = 0
        self._retry_due_s = self._now_s() + RETRY_INTERVAL_S
        self._sings = False
        self.walked: Walked | None = None
        self.found = 0
        self.is_silent = False

    @property
    def is_owner(self) -> bool:
        """Whether this process recovers."""
        return self._is_owner()

    @property
    def heard_s(self) -> int | None:
        """When the canary was last heard, in seconds; None if never."""
        return self._canary.heard_s if self._canary else None

    @property
    def until_s(self) -> int | None:
        """Up to when Stripe's list of events was read, in seconds; None if never."""
        return self._walker.until_s

    @property
    def gaps(self) -> int:
        """How often Stripe's list of events began after the cursor."""
        return self._walker.gaps

    async def run(self) -> None:
        """Recover for ever. What fails is logged and tried again at its next time; nothing is lost by that."""
        while True:
            if self._is_owner():
                await self.turn()
            await self._clock.sleep(PAUSE_S)

    async def turn(self) -> None:
        """Do what is due. The walk comes first, because the canary is awaited for minutes. A silent canary makes a walk
        due at once."""
        if not self._is_resumed:
            try:
                await self._resume()
            except Transient as error:
                _log.error("the times of the last walk and of the canary cannot be read: %s", error)
                return
        await self._walk_if_due()
        now_s = self._now_s()
        if self._canary is not None and now_s >= self._canary_due_s:
            self._canary_due_s = now_s + CANARY_INTERVAL_S
            await self._listen(self._canary)
            await self._walk_if_due()
        now_s = self._now_s()
        if now_s >= self._retry_due_s:
            self._retry_due_s = now_s + RETRY_INTERVAL_S
            await self._try_again()

    async def _resume(self) -> None:
        moved_s = await self._walker.resume()
        self._walk_due_s = 0 if moved_s is None else moved_s + WALK_INTERVAL_S
        if self._canary is not None and (last := await self._canary.resume()) is not None:
            touched_s, self.is_silent = last
            self._canary_due_s = touched_s + CANARY_INTERVAL_S
        self._is_resumed = True

    async def _listen(self, canary: Canary) -> None:
        self._sings = False
        try:
            self._sings = await canary.sings()
        except (Transient, Refused, InvalidInput) as error:
            _log.error("the canary customer cannot be changed: %s", error)
            return
        self.is_silent = not self._sings
        if self.is_silent:
            self._walk_due_s = 0
            _log.error(
                "webhooks are lost: the canary's event did not arrive. Look at the endpoint in Stripe's dashboard, at "
                "its secret, and at the gateway; meanwhile Stripe's list of events is read"
            )

    async def _walk_if_due(self) -> None:
        now_s = self._now_s()
        if now_s < self._walk_due_s:
            return
        self._walk_due_s = now_s + (CALM_WALK_INTERVAL_S if self._sings else WALK_INTERVAL_S)
        try:
            self.walked = await self._walker.go_on()
        except (Transient, Refused, InvalidInput, OperatorNeeded) as error:
            _log.error("Stripe's list of events cannot be read: %s", error)
            return
        self.found += self.walked.appended
        if self.walked.appended:
            _log.warning("%d events had not been delivered, or not yet", self.walked.appended)

    async def _try_again(self) -> None:
        try:
            appended = await self._retry()
        except Transient as error:
            _log.error("what is set aside or overdue cannot be read again: %s", error)
            return
        if appended:
            _log.warning(
                "%d events that were set aside, or subscriptions whose period is over, are read again", appended
            )

    def _now_s(self) -> int:
        return self._clock.now_ms() // SECOND_MS
