"""`POST /v1/corrections` voids or amends an event; `GET /v1/accounts/{account}/corrections` lists corrections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.decode import LEVELS_MAX, levels
from aggregators.instants import format_instant_ms
from aggregators.late_usage import text_of
from aggregators.quantities import decimal_text
from pipeline.explaining.settling import settlements
from pipeline.http.api_keys import ApiKey, Role
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies, Live, Operator, OverrideReader
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.models import Answer, Instant, MoneyAnswer
from pipeline.http.queries import AccountInPath, Parameters
from pipeline.logs.bindings import AccountLog
from pipeline.logs.correcting import (
    Listed,
    Planned,
    Told,
    Uncorrectable,
    listed_corrections,
    plan_correction,
    write_correction,
)
from schemas.control import CorrectionRecord
from schemas.corrections import CorrectionArchive, Settlement
from schemas.errors import InvalidInput
from schemas.events import ID_CHARACTERS_MAX, NAME_CHARACTERS_MAX, check_account, object_of

CORRECTIONS_PATH: Final = "/v1/corrections"
BODY_BYTES_MAX: Final = 128 * 1024
LISTED_MAX: Final = 1_000
BY_MAX: Final = 200
REASON_MAX: Final = 1_000
RETRY_S: Final = 5.0
_SHAPE: Final = '{"correction": "c-1", "account": "acme", "void": "event-1", "by": "ann", "reason": "a test run"}'
Treatment = Literal["next_period", "credit_note", "write_off"]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
_Event = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]


class _Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    correction: _Name
    account: _Name
    by: Annotated[str, msgspec.Meta(min_length=1, max_length=BY_MAX)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_MAX)]
    void: _Event | None = None
    amend: _Event | None = None
    # Kept as it is: numbers of the data are exact.
    data: msgspec.Raw = msgspec.Raw(b"")
    closed_period: Treatment = "next_period"
    dry_run: bool = False


class CorrectionWish(BaseModel):
    """Which event is corrected, how, by whom and why. Exactly one of `void` and `amend` names the event."""

    model_config = ConfigDict(extra="forbid")

    correction: str = Field(
        min_length=1, max_length=NAME_CHARACTERS_MAX, description="Your name of the correction. It counts once."
    )
    account: str = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    by: str = Field(min_length=1, max_length=BY_MAX, description="Who; the record names the key too.")
    reason: str = Field(min_length=1, max_length=REASON_MAX, description="Why.")
    void: str | None = Field(default=None, max_length=ID_CHARACTERS_MAX, description="The event that does not count.")
    amend: str | None = Field(default=None, max_length=ID_CHARACTERS_MAX, description="The event with other data.")
    data: dict[str, Any] | None = Field(default=None, description="All data of the amended event.")
    closed_period: Treatment = Field(
        default="next_period", description="What becomes of it if the event's period is closed."
    )
    dry_run: bool = Field(default=False, description="Whether nothing is written.")


class CorrectedAnswer(Answer):
    """A quantity of a meter and its dimensions."""

    meter: str
    dimensions: dict[str, str]
    quantity: str = Field(description="Signed decimal text.")


class SettlementAnswer(Answer):
    """What a correction changes of what was billed of a meter. Amounts are before taxes."""

    meter: str
    start: Instant = Field(description="Of the span that the invoice bills, or of the event's period without one.")
    end: Instant
    invoice: str = Field(description="Empty while none is known.")
    unknown: str = Field(description="Why the amounts cannot be known; empty if they are.")
    billed_quantity: str | None = Field(description="Units of all accounts of the customer.")
    corrected_quantity: str | None
    billed: MoneyAnswer | None = Field(description="By the invoice and by invoice items of late usage; no discounts.")
    settled_before: MoneyAnswer | None = Field(description="What credit notes of earlier corrections change of that.")
    corrected: MoneyAnswer | None = Field(description="What the corrected quantity costs; no discounts.")
    discount: MoneyAnswer | None = Field(description="By how much the discounts of the invoice change.")
    difference: MoneyAnswer | None = Field(
        description="What is left to settle: corrected - billed - settled_before - discount. Negative: a credit."
    )


class CorrectionAnswer(Answer):
    """What a correction changes. The totals follow in some seconds."""

    correction: str
    account: str
    event: str
    kind: Literal["void", "amend"]
    state: Literal["looked", "written", "known"] = Field(
        description="`looked`: a dry run, nothing was written; `known`: the log had the correction already."
    )
    closed_period: Treatment
    period_start: Instant = Field(description="Of the period of the event's time.")
    period_end: Instant
    is_closed: bool = Field(description="Whether that period is closed.")
    counts: bool = Field(description="False: the period is closed, and the changes are settled outside of the usage.")
    changes: list[CorrectedAnswer] = Field(
        description="By how much the totals change beside the adjustments that the archive has."
    )
    measured_again: list[str] = Field(description="Meters that are measured without the event from now on.")
    settlements: list[SettlementAnswer] = Field(
        description="If the period is closed: by how much its invoice differs from the corrected one."
    )


class ListedCorrectionAnswer(Answer):
    """A correction, and what its adjustments told so far."""

    correction: str
    event: str
    kind: Literal["void", "amend"]
    data: dict[str, Any] | None = Field(description="Of an amended event.")
    by: str
    reason: str
    at: Instant
    closed_period: Treatment
    counts: bool
    told: list[CorrectedAnswer]


class CorrectionsAnswer(Answer):
    """The corrections of an account, newest first."""

    account: str
    corrections: list[ListedCorrectionAnswer]


class CorrectionsParameters(Parameters):
    """The parameters of `GET /v1/accounts/{account}/corrections`."""

    limit: Annotated[int, Field(ge=1, le=LISTED_MAX, description="How many corrections.")] = 100


class CorrectionEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def post(self, request: Request, key: Operator, live: Live) -> Response:
        """Voids an event, or amends its data. The record is in the log when this answers, and the totals follow. The
        same correction again changes nothing."""
        async with self._bodies.read(request) as body:
            wanted = _decoded(body)
        wish = _record(wanted, _actor(wanted, key))
        known = self._dependencies
        log = AccountLog(known.log, known.genesis.partitions, known.settings.secret_bytes(), known.clock)
        try:
            planned = await plan_correction(log, live, self._archive(), wish)
        except Uncorrectable as error:
            raise _refused(error) from error
        settled = await settlements(known.explain, self._archive(), planned)
        if not wanted.dry_run:
            await write_correction(log, planned)
        return json_answer(planned_answer(planned, settled, is_dry_run=wanted.dry_run), 200 if wanted.dry_run else 202)

    async def listed(
        self, account: AccountInPath, _key: OverrideReader, parameters: Annotated[CorrectionsParameters, Query()]
    ) -> Response:
        """The corrections that the archive has, newest first, each with what its adjustments told so far."""
        check_account(account)
        partitions = self._dependencies.genesis.partitions
        rows = await listed_corrections(self._archive(), partitions, account, parameters.limit)
        return json_answer(CorrectionsAnswer(account=account, corrections=[listed_answer(row) for row in rows]))

    def _archive(self) -> CorrectionArchive:
        if self._dependencies.corrections is None:
            raise ApiError(501, "not_configured", "this gateway has no ClickHouse: set TIDEMARK_CLICKHOUSE_URL")
        return self._dependencies.corrections


def planned_answer(planned: Planned, settled: Sequence[Settlement], *, is_dry_run: bool) -> CorrectionAnswer:
    """A correction as the API answers; the command prints the same."""
    record = planned.record
    state: Literal["looked", "written", "known"] = "known" if planned.is_known else "written"
    state = "looked" if is_dry_run else state
    return CorrectionAnswer(
        correction=record.correction, account=record.account, event=record.event, kind=record.kind, state=state,
        closed_period=record.treatment, period_start=format_instant_ms(planned.period.start_ms),
        period_end=format_instant_ms(planned.period.end_ms), is_closed=planned.is_closed, counts=record.counts,
        changes=[
            CorrectedAnswer(
                meter=each.meter.slug, dimensions=json.loads(each.dimensions),
                quantity=decimal_text(each.minor, each.meter.scale),
            )
            for each in planned.changes
        ],
        measured_again=list(planned.samples) if record.counts else [],
        settlements=[_settlement(each) for each in settled],
    )  # fmt: skip


def _settlement(found: Settlement) -> SettlementAnswer:
    def money(minor: int) -> MoneyAnswer | None:
        return None if found.unknown else MoneyAnswer(minor=minor, currency=found.currency, exponent=found.exponent)

    return SettlementAnswer(
        meter=found.meter, start=format_instant_ms(found.span.start_ms), end=format_instant_ms(found.span.end_ms),
        invoice=found.invoice, unknown=found.unknown,
        billed_quantity=None if found.unknown else text_of(found.billed),
        corrected_quantity=None if found.unknown else text_of(found.corrected),
        billed=money(found.billed_minor), settled_before=money(found.settled_minor),
        corrected=money(found.corrected_minor), discount=money(found.discount_minor),
        difference=money(found.difference_minor),
    )  # fmt: skip


def listed_answer(row: Listed) -> ListedCorrectionAnswer:
    """One correction of the list."""
    record = row.correction.record
    return ListedCorrectionAnswer(
        correction=record.correction, event=record.event, kind=record.kind,
        data=json.loads(record.data) if record.data else None, by=record.by, reason=record.reason,
        at=format_instant_ms(row.correction.stream_time_ms), closed_period=record.treatment, counts=record.counts,
        told=[_told(each) for each in row.told],
    )  # fmt: skip


def _told(each: Told) -> CorrectedAnswer:
    return CorrectedAnswer(meter=each.meter, dimensions=dict(each.dimensions), quantity=each.quantity)


def _refused(error: Uncorrectable) -> ApiError:
    wait = retry_after(RETRY_S)
    match error.problem:
        case "not_archived_yet":
            return ApiError(404, "not_archived_yet", error.message, error.field, wait)
        case "not_decided_yet":
            return ApiError(409, "not_decided_yet", error.message, error.field, wait)
        case "correction_exists":
            return ApiError(409, "correction_exists", error.message, error.field)
        case "not_correctable":
            return ApiError(422, "not_correctable", error.message, error.field)


def _actor(wanted: _Body, key: ApiKey) -> str:
    """Who it was. Raises `ApiError` for a key of another account, and for one that an account has for itself."""
    if not key.reaches(wanted.account):
        raise ApiError(403, "forbidden", f"key {key.id} belongs to another account", "account")
    if key.account is not None and key.role is Role.ADMIN:
        message = f"key {key.id} belongs to one account: what of its usage counts, only an operator may say"
        raise ApiError(403, "forbidden", message)
    return f"{wanted.by} (key {key.id})"


def _record(wanted: _Body, by: str) -> CorrectionRecord:
    """Raises `InvalidInput`."""
    check_account(wanted.account)
    if (wanted.void is None) == (wanted.amend is None):
        raise InvalidInput("void", "name the event in exactly one of void and amend")
    text = bytes(wanted.data)
    data = None if text in (b"", b"null") else text
    if (wanted.amend is None) != (data is None):
        raise InvalidInput("data", "an amended event has all its new data here, and a voided one has none")
    event = wanted.void or wanted.amend or ""
    return correction_record(wanted.account, wanted.correction, event, data, by, wanted.reason, wanted.closed_period)


def correction_record(
    account: str, correction: str, event: str, data: bytes | None, by: str, reason: str, treatment: Treatment
) -> CorrectionRecord:
    """The record of a wish; without data the event is voided. Raises `InvalidInput` for data that are no object."""
    if data is not None:
        # As of an event: whoever reads the record later may stand deeper in a stack than this.
        if levels(data) > LEVELS_MAX:
            raise InvalidInput("data", f"is nested more than {LEVELS_MAX} levels deep")
        try:
            object_of(data)
        except (ValueError, RecursionError):
            raise InvalidInput("data", "is no JSON object") from None
    return CorrectionRecord(
        account=account, correction=correction, event=event, kind="void" if data is None else "amend",
        data="" if data is None else data.decode(), by=by, reason=reason, treatment=treatment,
    )  # fmt: skip


def _decoded(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {_SHAPE}") from None
