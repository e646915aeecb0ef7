"""`POST /v1/quarantine/redrives`: looks at, or sends again, the events of the quarantine that pass now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Annotated, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import parse_instant_us, why_no_instant
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies, Operator
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer
from pipeline.logs.marked import Identity, marked
from pipeline.logs.redriving import Judge, Preview, Redriving, new_redrive_id, preview
from schemas.clock import MILLISECOND_US
from schemas.errors import Fenced, InvalidInput
from schemas.redrives import Redrive, RedriveState, Selection

REDRIVES_PATH: Final = "/v1/quarantine/redrives"
BODY_BYTES_MAX: Final = 16 * 1024
TEXT_MAX: Final = 1_000
# A request works for so long, and answers how far it came.
WORK_S: Final = 4.0
_SHAPE: Final = '{"cause": "negative_quantity", "by": "ann", "reason": "the meter takes it now"}'
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    by: Text = ""
    reason: Text = ""
    cause: Annotated[str, msgspec.Meta(max_length=100)] = ""
    meter: Annotated[str, msgspec.Meta(max_length=100)] = ""
    since: str | None = None
    dry_run: bool = False


class RedriveWish(BaseModel):
    """Which events are sent again, by whom and why. A dry run needs neither `by` nor `reason`."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(default="", max_length=TEXT_MAX, description="Who, for the audit.")
    reason: str = Field(default="", max_length=TEXT_MAX, description="Why, for the audit.")
    cause: str = Field(default="", description="Only events that were rejected for this reason.")
    meter: str = Field(default="", description="Only events of the type that this meter reads.")
    since: str | None = Field(default=None, description="Only events that were rejected at this instant or later.")
    dry_run: bool = Field(default=False, description="Whether nothing is sent.")


class FailingAnswer(Answer):
    """Entries that would be rejected again."""

    cause: str = Field(description="The reason in the quarantine.")
    reason: str = Field(description="The reason now.")
    count: int
    detail: str = Field(description="Of one of them.")


class LookAnswer(Answer):
    """What a redrive would do; present for a dry run."""

    passing: dict[str, int] = Field(description="Entries that pass, by the reason in the quarantine.")
    accounts: dict[str, int] = Field(description="Entries that pass, by account; under an empty name those of others.")
    failing: list[FailingAnswer]
    arrived: int | None = Field(description="Events that arrived again meanwhile; null if Redis was not asked.")
    older_than_window: int = Field(description="Events for which the archive decides whether they arrived before.")
    unmetered: int = Field(description="Events that no meter counts.")


class RedriveAnswer(Answer):
    """How far a redrive is. While `state` is `running`, the same request goes on."""

    id: str = Field(description="An empty text of a dry run.")
    state: Literal["running", "done"] = Field(description="Of a dry run: whether all entries were looked at.")
    looked: int
    sent: int = Field(description="Entries that were sent again, or would be.")
    failing: int = Field(description="Entries that would be rejected again, and stay.")
    cut: int = Field(description="Entries that were kept in part, and stay.")
    repeated: int = Field(description="Entries of an event that was sent a moment before.")
    look: LookAnswer | None = None


class RedriveEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._bulk = BulkRedrives(dependencies)
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def post(self, request: Request, key: Operator) -> Response:
        """Look at, or send again, what passes by the meters in force. Each event counts at most once. A request works
        for some seconds; the same request again goes on."""
        if key.account is not None:
            raise ApiError(403, "forbidden", f"key {key.id} belongs to one account: the quarantine has all of them")
        async with self._bodies.read(request) as body:
            wanted = _decoded(body)
        selection = Selection(wanted.cause, wanted.meter, _since_ms(wanted.since))
        if wanted.dry_run:
            return json_answer(_look(await self._bulk.look(selection)))
        if not wanted.by.strip() or not wanted.reason.strip():
            raise InvalidInput("by and reason", "say who you are, and why: the audit keeps both")
        try:
            redrive = await self._bulk.send(selection, f"{wanted.by} (key {key.id})", wanted.reason)
        except Fenced as error:
            raise ApiError(409, "already_running", f"{error}: send the request again later") from error
        return json_answer(_answer(redrive))


class BulkRedrives:
    """Looks and redrives of a gateway. Each call works for `WORK_S`, and a redrive goes on with the next call."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def look(self, selection: Selection) -> Preview:
        """What a redrive would do, as far as the time reaches. Raises `InvalidInput` and `Transient`."""
        is_over = _timer()
        return await preview(self._dependencies.log, await self._judge(selection), self._arrived, is_over)

    async def send(self, selection: Selection, by: str, reason: str) -> Redrive:
        """Begin or go on. Raises `InvalidInput`, `Transient`, `Fenced`, and `ApiError` 501 without PostgreSQL."""
        is_over, given = _timer(), self._dependencies
        judge = await self._judge(selection)
        if given.operator is None:
            raise ApiError(501, "not_configured", "this gateway has no PostgreSQL: set TIDEMARK_SQL_URL")
        redrives = Redriving(given.log, (await given.operator.tables()).redrives, given.clock)
        redrive = await redrives.begin(new_redrive_id(), selection, by, reason)
        while redrive.state is RedriveState.RUNNING and not is_over():
            redrive = await redrives.step(redrive, judge)
        return redrive

    async def _judge(self, selection: Selection) -> Judge:
        return Judge(selection, await self._dependencies.meter_set(), self._dependencies.clock.now_ms())

    async def _arrived(self, identities: Collection[Identity]) -> Collection[Identity]:
        given = self._dependencies
        marks = given.live.marks if given.live is not None else None
        if marks is None:
            return ()
        return await marked(marks, given.settings.secret_bytes(), given.genesis.partitions, identities)


def _timer() -> Callable[[], bool]:
    """Whether `WORK_S` have passed since now."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + WORK_S
    return lambda: loop.time() >= end_s


def _decoded(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {_SHAPE}") from None


def _since_ms(text: str | None) -> int:
    if text is None:
        return 0
    instant_us = parse_instant_us(text)
    if instant_us is None:
        raise InvalidInput("since", f"{why_no_instant(text)}; write it as 2027-01-01T00:00:00Z")
    return instant_us // MILLISECOND_US


def _answer(redrive: Redrive) -> RedriveAnswer:
    return RedriveAnswer(id=redrive.id, state=redrive.state.value, **redrive.counts._asdict())


def _look(found: Preview) -> RedriveAnswer:
    failing = [
        FailingAnswer(cause=cause, reason=now, count=number, detail=found.details[now])
        for (cause, now), number in found.failing.most_common()
    ]
    look = LookAnswer(
        passing=dict(found.passing.most_common()), accounts=dict(found.accounts.most_common()), failing=failing,
        arrived=found.arrived, older_than_window=found.old, unmetered=found.unmetered,
    )  # fmt: skip
    return RedriveAnswer(id="", state="done" if found.is_whole else "running", look=look, **found.counts._asdict())
