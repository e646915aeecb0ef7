"""What people grant to accounts beside their plans: `/v1/accounts/{account}/overrides` and `…/contracts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms, parse_instant_us, why_no_instant
from pipeline.access.overriding import UnknownAccount, Wish, grant_wishes
from pipeline.http.access import opened_access, text_of
from pipeline.http.api_keys import ApiKey, Role
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies, Operator, OverrideReader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.override_models import OverrideAnswer, OverridesAnswer
from pipeline.http.queries import AccountInPath, Parameters
from schemas.clock import MILLISECOND_US
from schemas.entitlements import Operation, Override, SourceKind
from schemas.errors import InvalidInput
from schemas.events import check_account

BODY_BYTES_MAX: Final = 64 * 1024
TERMS_MAX: Final = 100
TEXT_MAX: Final = 1_000
Body = TypeVar("Body")
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]


class Term(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is done with the value of a feature."""

    does: Literal["set", "add", "at_least", "at_most", "deny"]
    value: Annotated[str, msgspec.Meta(max_length=BODY_BYTES_MAX)] = ""


class OverrideBody(Term, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a `PUT`."""

    by: Text
    reason: Text
    until: str | None = None
    new_account: bool = False


class ContractTerm(Term, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One term of a contract."""

    feature: Text


class ContractBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a `POST`."""

    terms: Annotated[list[ContractTerm], msgspec.Meta(min_length=1, max_length=TERMS_MAX)]
    by: Text
    reason: Text
    until: str | None = None
    new_account: bool = False


class RevokeParameters(Parameters):
    """The query of a `DELETE`."""

    by: Annotated[str, Field(min_length=1, max_length=TEXT_MAX, description="Who takes it back.")]
    reason: Annotated[str, Field(min_length=1, max_length=TEXT_MAX, description="Why, for the audit.")]


class OverrideEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def listed(self, account: AccountInPath, _key: OverrideReader) -> Response:
        """What people granted to an account, also what was taken back."""
        check_account(account)
        _, store = opened_access(self._dependencies)
        return _listed(account, await store.overrides(account))

    async def put(self, request: Request, account: AccountInPath, feature: str, key: Operator) -> Response:
        """Overrides a feature of an account from now on, instead of all overrides of the feature before. Contracts
        stay. The same request again changes nothing."""
        async with self._bodies.read(request) as body:
            wanted = _decoded(body, OverrideBody, '{"does": "add", "value": "5000", "by": "ann", "reason": "ticket 1"}')
        actor = _actor(wanted.by, key)
        wish = Wish(
            account, feature, Operation(wanted.does), wanted.value, _until_ms(wanted.until), actor, wanted.reason
        )
        return _listed(account, await self._granted([wish], replaces=True, is_new=wanted.new_account))

    async def delete(
        self, account: AccountInPath, feature: str, key: Operator, parameters: Annotated[RevokeParameters, Query()]
    ) -> Response:
        """Takes all overrides of a feature back. Contracts stay. Answers with what was taken back; the same request
        again takes nothing."""
        check_account(account)
        revoked = await self._revoked(account, feature, _actor(parameters.by, key), parameters.reason)
        return _listed(account, revoked)

    async def contract(self, request: Request, account: AccountInPath, key: Operator) -> Response:
        """Grants the terms of a contract from now on; an override stands above each. The same request again changes
        nothing."""
        async with self._bodies.read(request) as body:
            shape = (
                '{"terms": [{"feature": "api_calls", "does": "set", "value": "500000"}], "by": "ann", "reason": "…"}'
            )
            wanted = _decoded(body, ContractBody, shape)
        actor, until_ms = _actor(wanted.by, key), _until_ms(wanted.until)
        wishes = [
            Wish(account, term.feature, Operation(term.does), term.value, until_ms, actor, wanted.reason, contract=True)
            for term in wanted.terms
        ]
        return _listed(account, await self._granted(wishes, is_new=wanted.new_account))

    async def _granted(
        self, wishes: Sequence[Wish], *, replaces: bool = False, is_new: bool = False
    ) -> Sequence[Override]:
        checks, store = opened_access(self._dependencies)
        now_ms = self._dependencies.clock.now_ms()
        try:
            return await grant_wishes(checks.catalog, store, wishes, now_ms, replaces=replaces, is_new=is_new)
        except UnknownAccount as error:
            raise ApiError(404, "unknown_account", error.message, error.field) from error

    async def _revoked(self, account: str, feature: str, actor: str, reason: str) -> list[Override]:
        """Take back the overrides of a feature that are in force."""
        _, store = opened_access(self._dependencies)
        return [
            await store.revoke(account, made.number, actor, reason, self._dependencies.clock.now_ms())
            for made in await store.overrides(account)
            if made.revoked_ms is None and (made.grant.feature, made.grant.kind) == (feature, SourceKind.OVERRIDE)
        ]


def _actor(by: str, key: ApiKey) -> str:
    """Who it was, for the audit. Raises `ApiError` for a key that an account has for itself."""
    if key.account is not None and key.role is Role.ADMIN:
        message = f"key {key.id} belongs to one account: what it is granted, only an operator may say"
        raise ApiError(403, "forbidden", message)
    return f"{by} (key {key.id})"


def _listed(account: str, overrides: Sequence[Override]) -> Response:
    return json_answer(OverridesAnswer(account=account, overrides=[_answer(made) for made in overrides]))


def _answer(made: Override) -> OverrideAnswer:
    grant = made.grant
    return OverrideAnswer(
        number=made.number,
        kind=grant.kind.value,
        feature=grant.feature,
        does=grant.operation.value,
        value=text_of(grant.value),
        from_=format_instant_ms(grant.starts_ms),
        until=None if grant.ends_ms is None else format_instant_ms(grant.ends_ms),
        by=made.actor,
        reason=grant.reason,
        revoked_at=None if made.revoked_ms is None else format_instant_ms(made.revoked_ms),
        revoked_by=made.revoked_by or None,
        revoked_reason=made.revoked_reason or None,
    )


def _decoded(body: bytes, kind: type[Body], shape: str) -> Body:
    """The body of a request. Raises `ApiError`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {shape}") from None


def _until_ms(text: str | None) -> int | None:
    """Raises `InvalidInput`."""
    if text is None:
        return None
    instant_us = parse_instant_us(text)
    if instant_us is None:
        raise InvalidInput("until", f"{why_no_instant(text)}; write it as 2027-01-01T00:00:00Z")
    return instant_us // MILLISECOND_US
