"""Keeps the side tables complete although webhooks are lost: walks at the start, regularly, and when the canary is
silent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from pipeline.webhooks.walker import Canary, Walked, Walker
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient

WALK_INTERVAL_S: Final = 300
CANARY_INTERVAL_S: Final = 900
PAUSE_S: Final = 5.0

_log: Final = logging.getLogger(__name__)


class Recovery:
    """The walks and the canary of a deployment, in the process that owns the first partition."""

    def __init__(self, walker: Walker, canary: Canary | None, clock: Clock, is_owner: Callable[[], bool]) -> None:
        self._walker = walker
        self._canary = canary
        self._clock = clock
        self._is_owner = is_owner
        self._walk_due_s = self._canary_due_s = 0
        self.walked: Walked | None = None
        self.found = 0
        self.is_silent = False

    @property
    def heard_s(self) -> int | None:
        """When the canary was last heard, in seconds; None if never."""
        return self._canary.heard_s if self._canary else None

    async def run(self) -> None:
        """Recover for ever. What fails is logged and tried again at its next time; nothing is lost by that."""
        while True:
            if self._is_owner():
                await self.turn()
            await self._clock.sleep(PAUSE_S)

    async def turn(self) -> None:
        """Do what is due. A silent canary makes a walk due at once."""
        now_s = self._clock.now_ms() // SECOND_MS
        if self._canary is not None and now_s >= self._canary_due_s:
            self._canary_due_s = now_s + CANARY_INTERVAL_S
            await self._listen(self._canary)
        if now_s >= self._walk_due_s:
            self._walk_due_s = now_s + WALK_INTERVAL_S
            await self._walk()

    async def _listen(self, canary: Canary) -> None:
        try:
            self.is_silent = not await canary.sings()
        except (Transient, Refused, InvalidInput) as error:
            _log.error("the canary customer cannot be changed: %s", error)
            return
        if self.is_silent:
            self._walk_due_s = 0
            _log.error(
                "webhooks are lost: the canary's event did not arrive. Look at the endpoint in Stripe's dashboard, at "
                "its secret, and at the gateway; meanwhile Stripe's list of events is read"
            )

    async def _walk(self) -> None:
        try:
            self.walked = await self._walker.go_on()
        except (Transient, Refused, OperatorNeeded) as error:
            _log.error("Stripe's list of events cannot be read: %s", error)
            return
        self.found += self.walked.appended
        if self.walked.appended:
            _log.warning("%d events had not been delivered, or not yet", self.walked.appended)
