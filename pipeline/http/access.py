"""`POST /v1/access/check` and `GET /v1/accounts/{account}/entitlements`: what an account may do, and why."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec
from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from aggregators.entitlement_codec import decode
from aggregators.entitlements import segment_at
from aggregators.instants import format_instant_ms
from pipeline.access.checks import AccessChecks, Answer
from pipeline.access.holds import HoldRequest, check_key
from pipeline.http import models
from pipeline.http.api_keys import Role
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies, Reader, authorized
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.queries import AccountInPath, Instant, Parameters
from schemas.access import Decision
from schemas.entitlements import UNLIMITED, Entitlements, EntitlementVersion, Grant, Resolved, SourceKind, Value
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.holds import Hold
from schemas.upgrades import Upgrade

BODY_BYTES_MAX: Final = 256 * 1024
CHECKS_MAX: Final = 100
CHECK_PATH: Final = "/v1/access/check"
# 18 digits, as in events.
_QUANTITY: Final = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?")


class Wanted(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One check of a request."""

    account: str
    feature: str
    quantity: str = "1"
    used: str | None = None
    hold_s: int = 0


class EntitlementParameters(Parameters):
    """The query of `GET /v1/accounts/{account}/entitlements`."""

    at: Instant | None = None


class AccessEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def check(self, request: Request) -> Response:
        """Whether an account may use more of a feature, and why; or a list of such answers. Answered from memory,
        unless the quantity is to be held."""
        key = await authorized(self._dependencies, request, Role.CHECK, Role.READ)
        checks, _ = opened_access(self._dependencies)
        async with self._bodies.read(request) as body:
            wanted = _wanted(body)
        asked = [wanted] if isinstance(wanted, Wanted) else wanted
        for each in asked:
            check_account(each.account)
            if not key.reaches(each.account):
                raise ApiError(403, "forbidden", f"key {key.id} belongs to another account", "account")
            if each.hold_s and not key.may(Role.CHECK):
                raise ApiError(403, "forbidden", f"key {key.id} may only read: a hold needs check or admin", "hold_s")
            if each.hold_s and isinstance(wanted, list):
                raise InvalidInput("hold_s", "holds are taken one at a time: send the check alone, not in a list")
        request_key = request.headers.get("idempotency-key", "")
        check_key(request_key)
        if isinstance(wanted, Wanted):
            return json_answer(await self._answer(checks, wanted, request_key))
        # Side by side: a store that hangs delays the list as long as one check.
        answers = await asyncio.gather(*(self._answer(checks, each, request_key) for each in wanted))
        return json_answer({"answers": answers})

    async def _answer(self, checks: AccessChecks, wanted: Wanted, request_key: str) -> dict[str, Any]:
        quantity = quantity_of("quantity", wanted.quantity)
        used = None if wanted.used is None else quantity_of("used", wanted.used)
        hold = HoldRequest(wanted.hold_s, request_key) if wanted.hold_s else None
        found = await checks.check(wanted.account, wanted.feature, quantity, used, hold)
        return answer_fields(wanted.account, found, self._dependencies.clock.now_ms() if hold else None)

    async def entitlements(
        self, _key: Reader, account: AccountInPath, parameters: Annotated[EntitlementParameters, Query()]
    ) -> Response:
        """What an account may do now, or was allowed to do at an instant, and which event or person made it so."""
        check_account(account)
        _, store = opened_access(self._dependencies)
        now_ms = self._dependencies.clock.now_ms()
        at_ms = now_ms if parameters.at is None else parameters.at
        version = await store.version_at(account, at_ms)
        if version is None:
            message = "nothing was computed for this account by then: it has the default plan"
            raise ApiError(404, "no_entitlements", message, "account")
        return json_answer(entitlements_answer(account, version, at_ms))


def entitlements_answer(account: str, version: EntitlementVersion, at_ms: int) -> models.EntitlementsAnswer:
    """What an account may do at an instant, by the version that held then."""
    segment = segment_at(decode(version.segments), at_ms)
    return models.EntitlementsAnswer(
        account=account,
        at=format_instant_ms(at_ms),
        version=version.version,
        computed_at=format_instant_ms(version.computed_ms),
        cause=version.cause,
        features={
            name: models.EntitlementAnswer.model_validate(_shown(found))
            for name, found in sorted(segment.features.items())
            if ":" not in name
        },
    )


def opened_access(dependencies: GatewayDependencies) -> tuple[AccessChecks, Entitlements]:
    """The checks of a gateway, and the store. Raises `ApiError` without PostgreSQL, or until it answers."""
    access = dependencies.access
    if access is None:
        raise ApiError(501, "not_configured", "this gateway answers no checks: set TIDEMARK_SQL_URL")
    opened = access()
    if opened is None:
        raise ApiError(503, "not_known_yet", "PostgreSQL has not answered yet", headers=retry_after(2))
    return opened


def access_answer(account: str, found: Answer, held_at_ms: int | None = None) -> models.AccessAnswer:
    """A check's answer. `held_at_ms`: when a hold was asked for, if one was."""
    return models.AccessAnswer.model_validate(answer_fields(account, found, held_at_ms))


def answer_fields(account: str, found: Answer, held_at_ms: int | None = None) -> dict[str, Any]:
    """The fields of `access_answer` in their order, for JSON. To make a model of them costs as much as a check."""
    decision, counted, bound = found.decision, found.counted, found.overshoot_bound
    fields: dict[str, Any] = {
        "account": account,
        "feature": found.feature.name,
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "type": found.feature.type.value,
    }
    if decision.limit is not None:
        fields["limit"] = text_of(decision.limit)
        fields["used"] = text_of(decision.used or Decimal(0))
        fields["held"] = text_of(decision.held or Decimal(0))
        fields["remaining"] = text_of(decision.remaining if decision.remaining is not None else Decimal(0))
    if decision.included is not None:
        fields["included"] = text_of(decision.included)
        fields["overage"] = _overage(decision)
    if decision.value is not None:
        fields["value"] = msgspec.json.decode(decision.value)
    fields["gives"] = [_give(grant) for grant in decision.gives]
    fields["upgrade"] = _upgrade(found.upgrade) if found.upgrade else None
    fields["fallback"] = fields["reason"].startswith("fallback")
    fields["resets_at"] = format_instant_ms(counted.period_end_ms) if counted else None
    if held_at_ms is not None:
        fields["hold"] = hold_answer(found.hold, held_at_ms).model_dump() if found.hold else None
    fields["freshness"] = {
        "version": found.version,
        "computed_at": format_instant_ms(found.computed_ms) if found.version else None,
        "read_at": format_instant_ms(found.read_ms) if found.read_ms else None,
        "usage_complete_up_to": format_instant_ms(counted.complete_up_to_ms)
        if counted and counted.complete_up_to_ms is not None
        else None,
        "overshoot_bound": None if bound is None else text_of(bound),
    }
    return fields


def _overage(decision: Decision) -> dict[str, Any]:
    so_far, cap = decision.spending or (None, None)
    return {
        "quantity": text_of(decision.overage),
        "so_far": None if so_far is None else so_far._asdict(),
        "cap": None if cap is None else cap._asdict(),
    }


def hold_answer(hold: Hold, now_ms: int) -> models.HoldAnswer:
    """A hold in JSON."""
    return models.HoldAnswer(
        id=hold.id,
        account=hold.account,
        feature=hold.feature,
        quantity=text_of(hold.quantity),
        state=hold.state(now_ms).value,
        expires_at=format_instant_ms(hold.expires_ms),
        used=None if hold.used is None else text_of(hold.used),
    )


def _upgrade(found: Upgrade) -> dict[str, Any]:
    counted = {} if found.quantity is None else {"quantity": found.quantity}
    return {
        "addon" if found.is_addon else "plan": str(found.offer),
        **counted,
        "due_now": found.due_now._asdict(),
        "words": found.words,
    }


def _give(grant: Grant) -> dict[str, Any]:
    """A grant that takes part in a value."""
    return {
        "source": grant.kind.value,
        "id": grant.source,
        "does": grant.operation.value,
        "value": text_of(grant.value),
        "ends_at": None if grant.ends_ms is None else format_instant_ms(grant.ends_ms),
    }


def _granted(grant: Grant) -> dict[str, Any]:
    """A grant, and which person made it."""
    is_of_person = grant.kind in (SourceKind.CONTRACT, SourceKind.OVERRIDE)
    return {
        **_give(grant),
        "by": grant.cause if is_of_person else None,
        "reason": grant.reason if is_of_person else None,
        "granted_at": format_instant_ms(grant.starts_ms) if is_of_person else None,
    }


def text_of(value: Value) -> str:
    """A value as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is UNLIMITED:
        return "unlimited"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _shown(found: Resolved) -> dict[str, Any]:
    gives = [_granted(grant) for grant in found.gives]
    return {"value": text_of(found.value), "denied": found.is_denied, "gives": gives}


def _wanted(body: bytes) -> Wanted | list[Wanted]:
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"the body is not JSON: {str(error)[:200]}") from None
    if isinstance(document, list) and not 0 < len(document) <= CHECKS_MAX:
        raise ApiError(400, "invalid_input", f"send 1 to {CHECKS_MAX} checks")
    try:
        if isinstance(document, list):
            return msgspec.convert(document, list[Wanted])
        return msgspec.convert(document, Wanted)
    except msgspec.ValidationError as error:
        shape = '{"account": "acme", "feature": "api_calls", "quantity": "1"}, or a list of such objects'
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {shape}") from None


def quantity_of(field: str, text: str) -> Decimal:
    """The number of a text. Raises `InvalidInput` with the field."""
    if not _QUANTITY.fullmatch(text):
        raise InvalidInput(field, "must be a decimal number as text, from 0, with at most 18 digits before the point")
    return Decimal(text)
