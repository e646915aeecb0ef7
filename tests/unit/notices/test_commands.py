"""`tidemark notices list` and `retry`, and what the role shows of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import pytest_asyncio

from pipeline.commands import notices as commands
from pipeline.roles.notifier import NotifierLoops
from pipeline.settings import Settings
from schemas.notices import ChannelName, Delivery, DeliveryState, NoticeKind
from tests.unit.cli.command_lines import run
from tests.worlds.notices import NoticeWorld


@pytest_asyncio.fixture
async def rows() -> Sequence[Delivery]:
    """A dead delivery and one that waits."""
    world = NoticeWorld()
    await world.begin()
    world.use("acme", 1_000)
    await world.notifier()[0].turn()
    now_ms = world.clock.now_ms()
    (first,) = await world.outbox.claim(now_ms, now_ms + 1, 1)
    await world.outbox.settle(first, DeliveryState.DEAD, "the webhook answered 500", now_ms)
    return await world.rows()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, rows: Sequence[Delivery]) -> list[object]:
    """What the commands asked of the outbox."""
    questions: list[object] = []

    async def listed(_settings: Settings, state: DeliveryState | None, account: str, limit: int) -> Sequence[Delivery]:
        questions.append((state, account, limit))
        return [row for row in rows if state in (None, row.state)]

    async def retry(_settings: Settings, notice: str) -> int:
        questions.append(notice)
        return len([row for row in rows if row.state is DeliveryState.DEAD and notice in ("", row.notice.id)])

    monkeypatch.setattr(commands, "listed", listed)
    monkeypatch.setattr(commands, "retry", retry)
    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    return questions


def test_list_says_what_became_of_each(asked: list[object], rows: Sequence[Delivery]) -> None:
    result = run(["notices", "list", "--state", "dead", "--account", "acme"])
    (dead,) = [row for row in rows if row.state is DeliveryState.DEAD]

    assert asked == [(DeliveryState.DEAD, "acme", 20)]
    about = f"{dead.notice.id} webhook dead acme limit_warning tokens {dead.notice.percent} %"
    assert result.out.strip().endswith(f"{about}: the webhook answered 500")
    assert run(["notices", "list", "--state", "sent"]).out == "no notices\n"


def test_a_notice_is_one_line_whatever_a_server_answered(
    asked: list[object], rows: Sequence[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = rows[0].notice._replace(kind=NoticeKind.TRIAL_ENDS, subject="sub_1", percent=0)

    async def listed(*_: object) -> Sequence[Delivery]:
        return [rows[0]._replace(notice=about._replace(account="a\x1b[2Jb"), detail="450 wait\nall is sent")]

    monkeypatch.setattr(commands, "listed", listed)
    (line,) = run(["notices", "list"]).out.splitlines()
    assert line.endswith("a?[2Jb trial_ends sub_1: 450 wait?all is sent")


def test_list_as_json_is_that_of_the_gateway(asked: list[object], rows: Sequence[Delivery]) -> None:
    found = json.loads(run(["notices", "list", "--json", "--limit", "7"]).out)

    assert asked == [(None, "", 7)]
    assert [each["id"] for each in found] == [row.notice.id for row in rows]


def test_retry_says_how_many(asked: list[object], rows: Sequence[Delivery]) -> None:
    (dead,) = [row for row in rows if row.state is DeliveryState.DEAD]
    said = "1 delivery waits to be sent again\n"
    assert [run(["notices", "retry", each]).out for each in (dead.notice.id, "--all-dead")] == [said, said]
    unknown = run(["notices", "retry", "ntc_0"])
    assert (unknown.code, unknown.err) == (2, "tidemark: NOTICE_ID: no delivery of 'ntc_0' is dead\n")


@pytest.mark.parametrize("arguments", [[], ["ntc_0", "--all-dead"]])
def test_retry_needs_one_choice(asked: list[object], arguments: list[str]) -> None:
    result = run(["notices", "retry", *arguments])

    assert (result.code, asked) == (2, [])


async def test_the_role_shows_what_it_does() -> None:
    world = NoticeWorld()
    await world.begin()
    world.use("acme", 1_000)
    sweep, sending = world.notifier(waiting_max=2)
    loops = NotifierLoops(sweep, sending, world.outbox, world.clock)
    began_s = world.clock.now_ms() / 1_000
    await loops.sweep()
    world.clock.advance(60_000)
    # Two deliveries wait, so this look ends early and counts as none.
    await loops.sweep()
    await loops.count()
    world.receiver.answers = ["refused"]
    waiting = shown(loops)
    await loops.send(ChannelName.WEBHOOK)
    await loops.count()
    loops.refresh()
    after = shown(loops)

    assert [waiting[f"tidemark_notices_{name}"] for name in ("waiting", "oldest_age_seconds", "swept_seconds")] == [
        2, 60, began_s,
    ]  # fmt: skip
    assert [after[f"tidemark_notices_{name}"] for name in ("waiting", "dead")] == [1, 0]
    attempts = "tidemark_notice_attempts_total"
    assert after[f'{attempts}{{channel="webhook",result="failed"}}'] == 1
    assert after[f'{attempts}{{channel="webhook",result="sent"}}'] == 1


def shown(loops: NotifierLoops) -> dict[str, float]:
    """The metrics by name and labels."""
    lines = [line for line in loops.metrics.render()[0].decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
