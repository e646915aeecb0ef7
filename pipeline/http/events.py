"""`POST /v1/events`: checks each event of a request and answers "accepted" only after the log has the event."""

from __future__ import annotations

import asyncio
import copy
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aggregators.decode import decode, is_batch
from aggregators.judge import WITHOUT_METERS, event_time_us, judge, rules_at
from aggregators.meters import CompiledMeterSet, Failure, compiled
from aggregators.partitioning import partition_of
from pipeline.http.api_keys import ApiKey, Role
from pipeline.http.appender import Appender, Outgoing
from pipeline.http.body import Bodies, entries
from pipeline.http.dependencies import GatewayDependencies, authorized
from pipeline.http.errors import ApiError, json_answer, overloaded, retry_after
from pipeline.http.rate_limit import RateLimit
from pipeline.http.verify import arrived_before
from pipeline.logs.quarantine import Header, append_all, append_entry
from pipeline.metrics import Metrics
from schemas.adjustments import reserved
from schemas.errors import TidemarkError, Transient
from schemas.events import ID_CHARACTERS_MAX, NAME_CHARACTERS_MAX
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.reasons import REMEDIES, Reason

JUDGED_AT_ONCE_MAX: Final = 500
RETRY_AFTER_S: Final = 1.0
# From the end of the body on. Longer than the limit of an append, and shorter than the emitter's limit for a request:
# if the log does not answer, the client must see this answer.
ANSWER_TIMEOUT_S: Final = 8.0
FORBIDDEN: Final = "forbidden_account"
UNMETERED: Final = "no meter counts the event, and its id is used up"
UNMETERED_REMEDY: Final = "if it should count, correct its type or data, or add a meter; then send it under a new id"
UNKNOWN_METERS: Final = copy.copy(WITHOUT_METERS)

_anything: Final = msgspec.json.Decoder().decode
_log: Final = logging.getLogger(__name__)


class Judged(NamedTuple):
    """A checked event. `reason` is empty if the event is valid. `unmetered` is true if no meter counts the event.
    `skipped` are the meters that do not count the event because of its data, by slug, and why. `remedy` is empty
    if the remedy of the reason fits."""

    raw: bytes
    id: str | None
    account: str | None
    reason: str = ""
    detail: str = ""
    unmetered: bool = False
    skipped: Sequence[tuple[str, Failure]] = ()
    remedy: str = ""


class Judge:
    """Checks the events of one request with the fold's rules, the meter set and the request's key."""

    def __init__(self, meter_set: CompiledMeterSet, key: ApiKey, now_ms: int) -> None:
        self._now_ms = now_ms
        # The fold checks every event again, so a gateway that does not know the meters calls no event unmetered.
        self._is_known = meter_set is not UNKNOWN_METERS
        self._rules = rules_at(now_ms, meter_set)
        self._meters = meter_set
        self._key = key
        self._event_bytes_max = meter_set.meter_set.policy.event_bytes_max

    def judge(self, raw: bytes) -> Judged:
        """Check the JSON of one event."""
        # The decoder would take such a text for a batch, and the record with the other events would be invalid.
        if is_batch(raw):
            return self._rejected(raw, Failure(Reason.NOT_AN_EVENT, "a JSON list, not an object"))
        decoded = decode(raw, self._event_bytes_max)
        if decoded.rejected:
            first = decoded.rejected[0]
            return self._rejected(raw, Failure(first.reason, first.detail))
        event = decoded.events[0][1]
        if not self._key.reaches(event.subject):
            detail = "subject: this key may write another account only"
            return Judged(raw, event.id, None, FORBIDDEN, detail)
        if why := reserved(event.type, event.id):
            return Judged(raw, event.id, event.subject, Reason.RESERVED_TYPE.value, why)
        time_us = event_time_us(event, self._now_ms)
        contributions = judge(event, time_us, self._rules)
        if isinstance(contributions, Failure):
            return Judged(raw, event.id, event.subject, contributions.reason.value, contributions.detail)
        skipped = self._meters.skips(event.type, event.data or {}, time_us or 0)
        return Judged(raw, event.id, event.subject, unmetered=self._is_known and not contributions, skipped=skipped)

    def _rejected(self, raw: bytes, failure: Failure) -> Judged:
        try:
            document = _anything(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            document = None
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        account = _text(fields.get("subject"), NAME_CHARACTERS_MAX)
        if account is not None and not self._key.reaches(account):
            account = None
        return Judged(raw, _text(fields.get("id"), ID_CHARACTERS_MAX), account, failure.reason.value, failure.detail)


def field_of(reason: str, detail: str) -> str:
    """The field that caused a rejection. Empty if `detail` does not name a field."""
    if reason in (Reason.MISSING_FIELD, Reason.BAD_FIELD, Reason.BAD_TIME, Reason.RESERVED_TYPE, FORBIDDEN):
        return detail.partition(":")[0]
    if reason in (Reason.TOO_FAR_IN_FUTURE, Reason.TOO_FAR_IN_PAST, Reason.TOO_OLD):
        return "time"
    if reason in (Reason.BAD_JSON, Reason.BAD_ENCODING, Reason.TOO_DEEP):
        return "data" if detail.startswith("data: ") else ""
    path = re.search(r"\$(\.[A-Za-z0-9_.-]+)$", detail)
    return f"data{path[1]}" if path else ""


def _text(value: object, characters_max: int) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= characters_max else None


class EventsEndpoint:
    """The handler of `POST /v1/events`. An app has one."""

    def __init__(self, dependencies: GatewayDependencies, appender: Appender, metrics: Metrics) -> None:
        self._dependencies = dependencies
        self._appender = appender
        self._metrics = metrics
        self._bodies = Bodies(dependencies.settings.body_bytes_max)
        self._rate_limit = RateLimit(dependencies.clock)
        self._meter_set: tuple[MeterSet, CompiledMeterSet] | None = None

    async def post(self, request: Request) -> Response:
        """Check and append the events of a request, and answer with the result of each event."""
        key = await authorized(self._dependencies, request, Role.INGEST)
        self._rate_limit.check(key)
        verify, is_dry = _switch(request, "verify"), _switch(request, "dry_run")
        async with self._bodies.read(request) as body:
            deadline_s = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
            raws, unreadable, event_id, remedy = entries(request, body)
            # What is only judged takes nothing from what the application may send.
            self._rate_limit.take(key, 0 if is_dry else max(len(raws), 1))
            if unreadable is not None:
                event_id, reason = _text(event_id, ID_CHARACTERS_MAX), unreadable.reason.value
                judged = [Judged(unreadable.raw, event_id, None, reason, unreadable.detail, remedy=remedy)]
            else:
                judge = Judge(await self._compiled(), key, self._dependencies.clock.now_ms())
                judged = await _judge_all(judge, raws)
            good = [Outgoing(event.account, event.raw) for event in judged if not event.reason and event.account]
            before: list[bool] | None = None
            if verify:
                identities = [(event.account or "", event.id or "") for event in judged if not event.reason]
                # Before the append: afterwards the worker may have marked these very events.
                before = await arrived_before(self._dependencies, identities)
            durable = [True] * len(good) if is_dry else await self._append(good)
            rejected = [] if is_dry else [event for event in judged if event.reason not in ("", FORBIDDEN)]
            # A redrive knows no key: what may be of another account would reach that account.
            kept = [event for event in rejected if key.account is None or event.account is not None]
            await append_all(self._keep(event, deadline_s) for event in kept)
        more: dict[str, Any] = {"verified": before is not None} if verify else {}
        more |= {"dry_run": True} if is_dry else {}
        return self._answer(judged, zip(durable, before or [False] * len(durable), strict=True), more)

    async def _append(self, events: Sequence[Outgoing]) -> list[bool]:
        try:
            return await self._appender.append(events)
        except Transient as full:
            raise overloaded(f"{full}; nothing of this request was written", RETRY_AFTER_S) from full

    async def _compiled(self) -> CompiledMeterSet:
        """The meter set, compiled. `UNKNOWN_METERS` if the gateway has never reached the store of the meter set."""
        try:
            meter_set = await self._dependencies.meter_set()
        except Transient:
            return UNKNOWN_METERS
        if meter_set is None:
            return WITHOUT_METERS
        if self._meter_set is None or self._meter_set[0] is not meter_set:
            self._meter_set = (meter_set, compiled(meter_set))
        return self._meter_set[1]

    async def _keep(self, judged: Judged, deadline_s: float) -> None:
        """Append a rejected event to `usage.rejected` unchanged, so that an operator can redrive the event."""
        partition = partition_of(judged.account or "", self._dependencies.genesis.partitions)
        log, origin = self._dependencies.log, ((Header.SOURCE, b"gateway"),)
        try:
            async with asyncio.timeout_at(deadline_s):
                # A client must not fill the quarantine with megabytes.
                await append_entry(
                    log, partition, judged.reason, judged.detail, EVENTS_TOPIC, judged.raw, origin, cut=True
                )
        except (TidemarkError, TimeoutError) as error:
            # The answer still reports the rejection, and the sender still has the event.
            self._metrics.add("tidemark_gateway_unkept_rejections_total")
            _log.warning("a rejected event could not be kept: %s", str(error) or "the log did not answer in time")

    def _answer(
        self, judged: Sequence[Judged], outcomes: Iterator[tuple[bool, bool]], more: Mapping[str, Any]
    ) -> Response:
        """`outcomes`: for each event without a reason, whether the log confirmed it, and whether it arrived before."""
        answers: list[dict[str, Any]] = []
        counts: Counter[tuple[str, str]] = Counter()
        unmetered = 0
        for index, event in enumerate(judged):
            answer: dict[str, Any] = {"index": index, "id": event.id}
            if event.reason:
                answer |= {"status": "rejected", "reason": event.reason}
                field = field_of(event.reason, event.detail)
                answer |= {"field": field} if field else {}
                answer |= {"detail": event.detail, "remedy": event.remedy or _remedy(event.reason)}
            elif (outcome := next(outcomes)) == (True, False):
                answer["status"] = "accepted"
                unmetered += event.unmetered
                answer |= {"detail": UNMETERED, "remedy": UNMETERED_REMEDY} if event.unmetered else {}
                if event.skipped:
                    answer["skipped"] = [_skipped(slug, failure) for slug, failure in event.skipped]
            elif outcome == (True, True):
                answer["status"] = "duplicate"
            else:
                remedy = "send the event again under the same id: the event is counted once in any case"
                answer |= {"status": "unknown", "detail": "the log did not confirm it", "remedy": remedy}
            counts[answer["status"], event.reason] += 1
            answers.append(answer)
        for (status, reason), count in () if "dry_run" in more else counts.items():
            self._metrics.add("tidemark_gateway_events_total", count, status=status, reason=reason)
        accepted, duplicates, unknown = (counts[status, ""] for status in ("accepted", "duplicate", "unknown"))
        rejected = len(judged) - accepted - duplicates - unknown
        body: dict[str, Any] = {"accepted": accepted, "rejected": rejected}
        body |= {"duplicates": duplicates} if duplicates else {}
        body |= {"unknown": unknown} if unknown else {}
        body |= {"unmetered": unmetered} if unmetered else {}
        body |= more
        body["events"] = answers
        if unknown:
            return json_answer(body, 503, retry_after(RETRY_AFTER_S))
        if not rejected:
            return json_answer(body, 202)
        if accepted or duplicates:
            return json_answer(body, 207)
        return json_answer(body, 403 if counts["rejected", FORBIDDEN] == rejected else 400)


async def _judge_all(judge: Judge, raws: Sequence[bytes]) -> list[Judged]:
    judged: list[Judged] = []
    for start in range(0, len(raws), JUDGED_AT_ONCE_MAX):
        judged.extend(judge.judge(raw) for raw in raws[start : start + JUDGED_AT_ONCE_MAX])
        # Let other requests run between the parts of a large request.
        await asyncio.sleep(0)
    return judged


def _skipped(slug: str, failure: Failure) -> dict[str, str]:
    """A meter that does not count an accepted event (`on_bad: skip_meter`), and why."""
    field = field_of(failure.reason, failure.detail)
    return {"meter": slug, "reason": failure.reason.value, **({"field": field} if field else {})}


def _switch(request: Request, name: str) -> bool:
    """A parameter that is 1 or 0. Raises `ApiError` for anything else."""
    text = request.query_params.get(name, "0") if request.scope["query_string"] else "0"
    if text not in ("0", "1"):
        raise ApiError(400, "bad_parameter", f"{name}: must be 1 or 0", name)
    return text == "1"


def _remedy(reason: str) -> str:
    if reason == FORBIDDEN:
        return "use a key of that account, or one without an account"
    return REMEDIES[Reason(reason)]
