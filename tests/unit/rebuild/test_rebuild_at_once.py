"""Two concurrent rebuild commands on fakes: the later command wins, whatever the earlier one was doing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from schemas.errors import Fenced
from tests.worlds.rebuild import Archive
from tests.worlds.rebuild_commands import COMMANDS, CommandsWorld, PausedStep

LATER = [*COMMANDS, "abandon redis", "abandon usage_hourly", "abandon archive"]


async def overtaken(first: str, later: Sequence[str], step: int) -> bool:
    """Pauses a command at a step, runs other commands to their end, and resumes. False if the command ended earlier."""
    world = await CommandsWorld(60, Archive.RUNS_ON).loaded(0.6)
    pause = PausedStep(step)
    running = asyncio.create_task(world.run(first, world.started(pause.step)))
    waiting = asyncio.create_task(pause.reached.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        waiting.cancel()
        await running
        return False
    await world.traffic()
    for command in later:
        await world.now(command)
    await world.traffic()
    pause.go.set()
    await asyncio.gather(running, return_exceptions=True)
    error = running.exception()
    assert error is None or isinstance(error, Fenced) or "it counts anew" in str(error), repr(error)

    await world.finish()
    await world.traffic()
    await world.assert_right()
    if not step % 7:
        # A later rebuild must not find a remainder that it would take for its own.
        for command in COMMANDS:
            await world.now(command)
        await world.finish()
        await world.assert_right()
    return True


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("first", COMMANDS)
async def test_later_command_wins_at_any_step_of_the_earlier_one(first: str, later: str) -> None:
    """The earlier command ends as fenced at its next step, its write under way is harmless, and every view is right."""
    step = 1
    while await overtaken(first, [later], step):
        step += 1
    assert step > 20
