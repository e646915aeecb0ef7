"""Deliberate defects on the way from the mirror to what an account may do, and from there to a gateway's answer."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, select, update

import aggregators.account_grants
import aggregators.entitlements
import sinks.sql.entitlements
from pipeline.access.known import KnownAccounts
from schemas.catalog import AddOn
from schemas.entitlements import Operation, Recomputed, SourceKind
from simulation.seeds import BILLING_STRIDE
from sinks.sql.catalog import SqlCatalog
from sinks.sql.entitlements import SqlEntitlements
from sinks.sql.tables import accounts
from tests.simulation.mutant import Method, Mutant

# Long enough for an event of the account to come in between.
BETWEEN_S: Final = 300.0


def _marks_only(_original: Method) -> Method:
    """The account is fresh, and its version is not written."""

    async def renew(self: SqlEntitlements, account: str, *_arguments: Any) -> Recomputed:
        fresh = update(accounts).where(accounts.c.account == account).values(entitled_seq=accounts.c.audit_seq)
        await self._run(lambda connection: connection.execute(fresh))
        return Recomputed(is_new=False)

    return renew


def _reads_before_the_lock(original: Method) -> Method:
    """What the version is made of was read before the account was locked."""

    async def renew(self: SqlEntitlements, account: str, sha256: str, resolver: Any, now_ms: int) -> Any:
        found: list[Any] = []

        class Read(Exception):
            """Ends the transaction that only reads."""

        def reading(*inputs: Any) -> Any:
            found.append(resolver(*inputs))
            raise Read

        try:
            await original(self, account, sha256, reading, now_ms)
        except Read:
            await asyncio.sleep(BETWEEN_S)
        return await original(self, account, sha256, lambda *_inputs: found[0], now_ms)

    return renew


def _fresh_first(original: Method) -> Method:
    """The account is marked as fresh in one transaction, and its version is written in another."""

    async def renew(self: SqlEntitlements, account: str, *arguments: Any) -> Any:
        fresh = update(accounts).where(accounts.c.account == account).values(entitled_seq=accounts.c.audit_seq)
        await self._run(lambda connection: connection.execute(fresh))
        await asyncio.sleep(5.0)
        return await original(self, account, *arguments)

    return renew


def _always_new(original: Method) -> Method:
    """Equal inputs make another text each time."""

    async def renew(self: SqlEntitlements, account: str, sha256: str, resolver: Any, now_ms: int) -> Any:
        def another(*inputs: Any) -> Any:
            computed = resolver(*inputs)
            return computed._replace(segments=computed.segments + " " * (now_ms % 97 + 1))

        return await original(self, account, sha256, another, now_ms)

    return renew


def _revoked_ones_too(original: Any) -> Any:
    def overrides(*arguments: Any) -> Any:
        return [made._replace(revoked_ms=None) for made in original(*arguments)]

    return overrides


def _unmarked(original: Method) -> Method:
    """Another catalog leaves every account as fresh as it was."""

    async def activate(self: SqlCatalog, *arguments: Any) -> None:
        marks = select(accounts.c.account, accounts.c.entitled_seq)
        before = await self._run(lambda connection: connection.execute(marks).all())
        await original(self, *arguments)
        for account, seq in before:
            back = update(accounts).where(accounts.c.account == account).values(entitled_seq=seq)
            await self._run(partial(_executed, back))

    return activate


def _executed(statement: Any, connection: Connection) -> None:
    connection.execute(statement)


def _deny_loses(original: Any) -> Any:
    return lambda feature, grants: original(feature, [each for each in grants if each.operation is not Operation.DENY])


def _endless_trials(original: Any) -> Any:
    def grant(kind: Any, *arguments: Any) -> Any:
        made = original(kind, *arguments)
        return made._replace(ends_ms=None) if kind is SourceKind.TRIAL else made

    return grant


def _once(original: Any) -> Any:
    """An add-on gives once, however often it is bought."""

    def sold(plan: Any, terms: AddOn, span: Any, paid: Any, cause: str) -> Any:
        return original(plan, terms, span, [(component, 1) for component, _ in paid[:1]], cause)

    return sold


def _latest_everywhere(original: Any) -> Any:
    """Who bought an old version has the new one."""

    def granted(commerce: Any, *arguments: Any) -> Any:
        by_name = {plan.name: each for plan, each in commerce.catalog.sold().items()}
        sold = {plan: by_name.get(plan.name, each) for plan, each in commerce.sold.items()}
        return original(commerce._replace(sold=sold), *arguments)

    return granted


def _stale_answer(original: Method) -> Method:
    """What SQL said before comes late, and replaces what is newer."""

    async def refresh(self: KnownAccounts) -> None:
        before = dict(self._accounts)
        await original(self)
        self._accounts.update({account: known for account, known in before.items() if account in self._accounts})

    return refresh


def _on_billing_seeds(name: str, target: Any, attribute: str, made: Any) -> Mutant:
    return Mutant(name, target, attribute, made, stride=BILLING_STRIDE)


ACCESS: Final = (
    _on_billing_seeds("access: fresh without a version", SqlEntitlements, "renew", _marks_only),
    _on_billing_seeds("access: read before the lock", SqlEntitlements, "renew", _reads_before_the_lock),
    _on_billing_seeds("access: fresh before the version", SqlEntitlements, "renew", _fresh_first),
    _on_billing_seeds("access: a new version each time", SqlEntitlements, "renew", _always_new),
    _on_billing_seeds(
        "access: a price of nobody takes away", sinks.sql.entitlements, "_is_new",
        lambda made: lambda before, computed: made(before, computed._replace(unreadable=())),
    ),
    _on_billing_seeds(
        "access: what was taken back still gives", sinks.sql.entitlements, "_overrides", _revoked_ones_too
    ),
    _on_billing_seeds("access: another catalog marks nobody", SqlCatalog, "activate_catalog", _unmarked),
    _on_billing_seeds("access: a denial loses", aggregators.entitlements, "resolved_of", _deny_loses),
    _on_billing_seeds("access: a trial never ends", aggregators.account_grants, "_grant", _endless_trials),
    _on_billing_seeds("access: an add-on gives once", aggregators.account_grants, "_addon_grants", _once),
    _on_billing_seeds(
        "access: everybody has the newest version", aggregators.account_grants, "granted", _latest_everywhere
    ),
    _on_billing_seeds("gateway: an older version comes back", KnownAccounts, "refresh", _stale_answer),
)  # fmt: skip
