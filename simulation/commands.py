"""Commands that people give: each runs in a process of its own, dies at any call, and is repeated until it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from schemas.errors import Fenced, Transient
from simulation.faults import Fault
from simulation.processes import Killed, Process
from simulation.services import Deployment

AGAIN_S: Final = 60.0

Command = Callable[[Process], Coroutine[Any, Any, None]]


async def in_own_process(world: Deployment, name: str, command: Command) -> None:
    """Run a command in a process of its own, which ends with the command.

    Raises what the command raises, and `Killed` if the process died. The caller's own cancellation ends the process.
    """
    process = Process(name, world.chance(name), world.faults, world.rates, world.trace)
    work = process.run(command(process))
    try:
        await asyncio.wait([work])
    finally:
        process.kill()
    if work.cancelled():
        raise Killed(name)
    work.result()


class Commands:
    """One command after the other, under the name of who gives them."""

    def __init__(self, world: Deployment, name: str) -> None:
        self._world = world
        self._name = name
        self._chance = world.chance(name)
        self._runs = 0
        self._doing: Command | None = None

    async def finish(self) -> None:
        """End what was begun."""
        if self._doing is not None:
            await self._done(self._doing)

    def _strike(self, kind: Fault) -> bool:
        return self._world.faults.strike(kind, f"{self._name}.{self._runs}")

    async def _done(self, command: Command) -> None:
        """Run a command in a process of its own until it succeeds."""
        self._doing = command
        while self._doing is not None:
            self._runs += 1
            try:
                await in_own_process(self._world, f"{self._name}.{self._runs}", command)
            except (Killed, Transient, Fenced):
                await asyncio.sleep(AGAIN_S)
            else:
                self._doing = None
