"""What a person's grant changes among those that people made before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.entitlements import Grant, Operation, Override, SourceKind
from schemas.periods import INSTANT_MIN_MS


def repeated(known: Sequence[Override], grant: Grant) -> Override | None:
    """The override in force that a grant only repeats. A value that was set otherwise since is set again."""
    rivals = [
        made
        for made in known
        if made.revoked_ms is None
        and (made.grant.feature, made.grant.kind, made.grant.operation) == (grant.feature, grant.kind, grant.operation)
    ]
    if grant.operation is Operation.SET:
        rivals = rivals[-1:]
    return next((made for made in rivals if _terms(made.grant) == _terms(grant)), None)


def _terms(grant: Grant) -> Grant:
    return grant._replace(source="", starts_ms=INSTANT_MIN_MS)


def replaced(known: Iterable[Override], kept: Iterable[Override]) -> list[Override]:
    """The overrides in force that others stand instead of: those of the same features. Contracts stay."""
    by_number = {made.number: made for made in kept}
    features = {made.grant.feature for made in by_number.values()}
    return [
        made
        for made in known
        if made.revoked_ms is None
        and made.grant.kind is SourceKind.OVERRIDE
        and made.grant.feature in features
        and made.number not in by_number
    ]
