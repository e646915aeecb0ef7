"""What people grant to an account beside its plan, and take back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

from pipeline.access.renewal import commerce_of
from schemas.catalog import Feature, FeatureType
from schemas.catalog_changes import CatalogStore
from schemas.entitlements import UNLIMITED, Entitlements, Grant, Operation, Override, SourceKind, Value
from schemas.errors import InvalidInput
from schemas.events import check_account


class Wish(NamedTuple):
    """What a person grants to an account. `value` is a number, `unlimited`, `true`, `false` or the JSON of a config."""

    account: str
    feature: str
    operation: Operation
    value: str
    ends_ms: int | None
    actor: str
    reason: str
    contract: bool = False


class UnknownAccount(InvalidInput):
    """Nobody has linked the account or granted it anything."""


async def grant_wishes(
    catalog: CatalogStore,
    entitlements: Entitlements,
    wishes: Sequence[Wish],
    now_ms: int,
    *,
    replaces: bool = False,
    is_new: bool = False,
) -> Sequence[Override]:
    """Grant what a person wishes for one account, from now on: all of it or nothing. The same again changes nothing.
    With `replaces`, the other overrides of the same features are taken back.

    Raises `UnknownAccount` for an account that was never linked or granted anything, unless `is_new`: a wrong name
    would be granted what nobody asks for. Raises `InvalidInput` for a feature or value that does not fit the active
    catalog, and `Transient`.
    """
    found = await commerce_of(catalog)
    if found is None:
        raise InvalidInput("feature", "no catalog is active: see `tidemark catalog plan --help`")
    grants = [_grant(found[1].catalog.features, wish, now_ms) for wish in wishes]
    account = wishes[0].account
    if not is_new and not await entitlements.knows(account):
        raise UnknownAccount(
            "account",
            f"{account!r} was never linked or granted anything: correct the name, or say that the account is new "
            "(--new-account, over HTTP new_account)",
        )
    return await entitlements.grant(account, grants, wishes[0].actor, now_ms, replaces=replaces)


def _grant(features: Mapping[str, Feature], wish: Wish, now_ms: int) -> Grant:
    """The grant of a wish. An override holds from now on; what was allowed before stays in older versions."""
    check_account(wish.account)
    if wish.ends_ms is not None and wish.ends_ms <= now_ms:
        raise InvalidInput("until", "is not later than now")
    if wish.feature not in features:
        raise InvalidInput("feature", f"{wish.feature[:100]!r} is no feature of the catalog: `tidemark catalog show`")
    value = _value(wish, features[wish.feature].type)
    kind = SourceKind.CONTRACT if wish.contract else SourceKind.OVERRIDE
    source = f"{kind.value} {secrets.token_hex(4)}"
    return Grant(
        wish.feature, kind, source, wish.operation, value, now_ms, wish.ends_ms, cause=wish.actor, reason=wish.reason
    )


def _value(wish: Wish, kind: FeatureType) -> Value:
    """The value of a wish, as its feature needs it."""
    if wish.operation is Operation.DENY:
        return False
    if kind is FeatureType.FLAG and wish.value in ("true", "false"):
        return wish.value == "true"
    if kind in (FeatureType.LIMIT, FeatureType.SEAT):
        if wish.value == UNLIMITED.value and wish.operation in (Operation.SET, Operation.AT_LEAST):
            return UNLIMITED
        if wish.value.isascii() and wish.value.isdigit() and len(wish.value) <= 15:
            return Decimal(wish.value)
    if kind is FeatureType.CONFIG and wish.operation is Operation.SET and wish.value.startswith("{"):
        return _config(wish.value)
    forms = {
        FeatureType.FLAG: "true or false",
        FeatureType.CONFIG: "a JSON object, and only --set",
        FeatureType.LIMIT: "a whole number of up to 15 digits, or unlimited",
        FeatureType.SEAT: "a whole number of up to 15 digits, or unlimited",
    }
    raise InvalidInput("value", f"{wish.feature} is a {kind.value}: give {forms[kind]}")


def _config(text: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="sorted").decode()
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput("value", f"is not JSON: {error}") from error
