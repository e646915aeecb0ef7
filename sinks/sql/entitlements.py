"""Overrides, and the versions of accounts' entitlements, in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from sqlalchemy import Connection, RowMapping, func, insert, select, text, update

from aggregators.billed import billed_of
from aggregators.entitlement_codec import decode_value, encode_value
from aggregators.overrides import repeated, replaced
from schemas.catalog import Dunning
from schemas.clock import DAY_MS
from schemas.entitlements import (
    Computed,
    EntitlementVersion,
    Grant,
    Operation,
    Override,
    Recomputed,
    Renewed,
    Resolver,
    SourceKind,
)
from schemas.errors import Fenced, InvalidInput
from schemas.side_tables import Link, Row
from schemas.upgrades import Billed
from sinks.sql import audit as trail
from sinks.sql import dunning
from sinks.sql.bindings import owned_rows
from sinks.sql.intents import Run
from sinks.sql.queries import Head, chunks, insert_new, links_of, lock_accounts, save_heads
from sinks.sql.tables import accounts, audit, catalog_versions, entitlement_versions, overrides

Answer = TypeVar("Answer")

OVERRIDE_COMMAND: Final = "account override"
REVOKE_COMMAND: Final = "account revoke"
ENTITY: Final = "override"
# The `entitled_seq` of an account that was not computed yet, or by another catalog.
MARKED: Final = -1


class SqlEntitlements:
    """Implements `schemas.entitlements.Entitlements`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def stale(self, limit: int = 500, after: str = "") -> Sequence[str]:
        # The row without a name is the catalog's.
        wanted = select(accounts.c.account).where(
            accounts.c.entitled_seq != accounts.c.audit_seq, accounts.c.account > after
        )
        wanted = wanted.order_by(accounts.c.account).limit(limit)
        return await self._run(lambda connection: list(connection.execute(wanted).scalars()))

    async def due(self, now_ms: int, limit: int = 500) -> Sequence[str]:
        return await self._run(lambda connection: dunning.due(connection, now_ms, limit))

    async def renew(
        self, account: str, catalog_sha256: str, resolver: Resolver, now_ms: int, policy: Dunning | None = None
    ) -> Recomputed:
        return await self._run(lambda connection: _renew(connection, account, catalog_sha256, resolver, now_ms, policy))

    async def recompute(self, account: str = "") -> int:
        is_one = accounts.c.account == account if account else accounts.c.account != ""
        marked = update(accounts).values(entitled_seq=-1)

        def body(connection: Connection) -> int:
            # Accounts are locked in ascending order, as everywhere.
            locked = select(accounts.c.account).where(is_one).order_by(accounts.c.account).with_for_update()
            names = list(connection.execute(locked).scalars())
            connection.execute(marked.where(is_one))
            return len(names)

        return await self._run(body)

    async def latest(self, accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        found = entitlement_versions.c

        def body(connection: Connection) -> dict[str, EntitlementVersion]:
            versions: dict[str, EntitlementVersion] = {}
            for chunk in chunks(dict.fromkeys(accounts)):
                greatest = select(found.account, func.max(found.version).label("version"))
                newest = greatest.where(found.account.in_(chunk)).group_by(found.account).subquery()
                wanted = select(entitlement_versions).join(
                    newest, (found.account == newest.c.account) & (found.version == newest.c.version)
                )
                versions |= {row["account"]: _version(row) for row in connection.execute(wanted).mappings()}
            return versions

        return await self._run(body)

    async def last_number(self) -> int:
        return await self._run(_last_number)

    async def changed(self, after: int, limit: int = 10_000) -> Sequence[Renewed]:
        found = entitlement_versions.c
        wanted = select(found.account, found.version, found.number).where(found.number > after)
        wanted = wanted.order_by(found.number).limit(limit)
        return await self._run(lambda connection: [Renewed(*row) for row in connection.execute(wanted)])

    async def billed(self, account: str, now_ms: int) -> Billed:
        return await self._run(lambda connection: billed_now(connection, account, now_ms))

    async def version_at(self, account: str, instant_ms: int) -> EntitlementVersion | None:
        return await self._run(lambda connection: newest_version(connection, account, instant_ms))

    async def override(self, account: str, grant: Grant, actor: str, now_ms: int) -> Override:
        return (await self._run(lambda connection: _granted(connection, account, [grant], actor, now_ms, _equal)))[0]

    async def grant(
        self, account: str, grants: Sequence[Grant], actor: str, now_ms: int, *, replaces: bool = False
    ) -> Sequence[Override]:
        return await self._run(
            lambda connection: _granted(connection, account, grants, actor, now_ms, repeated, replaces=replaces)
        )

    async def revoke(self, account: str, number: int, actor: str, reason: str, now_ms: int) -> Override:
        return await self._run(lambda connection: _revoke(connection, account, number, actor, reason, now_ms))

    async def knows(self, account: str) -> bool:
        wanted = select(accounts.c.account).where(accounts.c.account == account)
        return await self._run(lambda connection: connection.execute(wanted).first() is not None)

    async def overrides(self, account: str) -> Sequence[Override]:
        return await self._run(lambda connection: _with_revokers(connection, account, _overrides(connection, account)))


def _renew(
    connection: Connection, account: str, catalog_sha256: str, resolver: Resolver, now_ms: int, policy: Dunning | None
) -> Recomputed:
    heads = lock_accounts(connection, {account})
    head = heads[account]
    active = select(catalog_versions.c.sha256).where(catalog_versions.c.state == "active")
    if connection.execute(active).scalar() != catalog_sha256:
        raise Fenced("another catalog is active than the one that the entitlements were computed by")
    links = links_of(connection, {account})[account]
    rows = _mirror(connection, links)
    if policy is not None:
        cause = _cause(connection, account) if _is_stale(connection, account) else dunning.ACTOR
        look = dunning.Look(account, links, policy, cause, now_ms)
        dunning.advance(connection, head, look, rows["subscriptions"])
        save_heads(connection, heads)
    rows["dunning_cases"] = dunning.deciding(connection, {str(row["id"]) for row in rows["subscriptions"]})
    people = [made.grant for made in _overrides(connection, account) if made.revoked_ms is None]
    before = newest_version(connection, account)
    computed = resolver(links, rows, people, _since_ms(now_ms))
    is_new = _is_new(before, computed)
    if before and before.inputs_sha256 == computed.inputs_sha256:
        # Another version of the program may resolve the same inputs otherwise.
        is_new = before.segments != resolver(links, rows, people, _since_ms(before.computed_ms)).segments
    if is_new:
        version = before.version + 1 if before else 1
        row = {
            "account": account, "version": version, "computed_ms": now_ms, "inputs_sha256": computed.inputs_sha256,
            "segments_json": computed.segments, "cause": _cause(connection, account),
            "number": _next_number(connection),
        }  # fmt: skip
        connection.execute(insert(entitlement_versions), row)
    connection.execute(update(accounts).where(accounts.c.account == account).values(entitled_seq=head.audit_seq))
    return Recomputed(is_new, computed.unreadable)


def billed_now(connection: Connection, account: str, now_ms: int) -> Billed:
    """What an account pays now, by the mirror."""
    links = links_of(connection, {account})[account]
    return billed_of(links, _mirror(connection, links), now_ms)


def _is_stale(connection: Connection, account: str) -> bool:
    wanted = select(accounts.c.entitled_seq != accounts.c.audit_seq).where(accounts.c.account == account)
    return bool(connection.execute(wanted).scalar())


def _since_ms(computed_ms: int) -> int:
    """From when on a version is exact: the clock of a gateway may be behind that of the mirror."""
    return computed_ms - DAY_MS


def _mirror(connection: Connection, links: Sequence[Link]) -> dict[str, list[Row]]:
    """The mirror's rows of the customers of links, by table."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for owned in owned_rows(connection, {link.customer for link in links if link.customer}).values():
        for table, found in owned.items():
            rows[table] += found
    return rows


def _last_number(connection: Connection) -> int:
    return connection.execute(select(func.max(entitlement_versions.c.number))).scalar() or 0


def _next_number(connection: Connection) -> int:
    """A number that no version has. SQLite has no sequences, and only one transaction at a time."""
    if connection.dialect.name != "postgresql":
        return _last_number(connection) + 1
    return int(connection.execute(text("SELECT nextval('entitlement_numbers')")).scalar_one())


def _is_new(before: EntitlementVersion | None, computed: Computed) -> bool:
    if before is None:
        return True
    # Each grant has its subscription as its cause, so the text says whether one gave something.
    return not any(f'"{subscription}"' in before.segments for subscription in computed.unreadable)


def _cause(connection: Connection, account: str) -> str:
    """What happened to the account last: an event, a command, or the catalog that became active after them."""
    rows = select(audit.c.cause, audit.c.at_ms).where(audit.c.account == account).order_by(audit.c.seq.desc()).limit(1)
    cause, at_ms = connection.execute(rows).one_or_none() or ("", -1)
    marked = select(accounts.c.entitled_seq).where(accounts.c.account == account)
    if connection.execute(marked).scalar() == MARKED:
        catalog = select(catalog_versions.c.version).where(
            catalog_versions.c.state == "active", catalog_versions.c.applied_ms > at_ms
        )
        if (version := connection.execute(catalog).scalar()) is not None:
            return f"catalog {version}"
    return str(cause)


def newest_version(connection: Connection, account: str, until_ms: int | None = None) -> EntitlementVersion | None:
    """The newest version of an account's entitlements, or the newest of an instant."""
    found = entitlement_versions.c
    wanted = select(entitlement_versions).where(found.account == account).order_by(found.version.desc()).limit(1)
    if until_ms is not None:
        wanted = wanted.where(found.computed_ms <= until_ms)
    row = connection.execute(wanted).mappings().first()
    return None if row is None else _version(row)


def _version(row: RowMapping) -> EntitlementVersion:
    return EntitlementVersion(
        row["account"], row["version"], row["computed_ms"], row["inputs_sha256"], row["segments_json"], row["cause"]
    )


def _equal(known: Sequence[Override], grant: Grant) -> Override | None:
    return next((made for made in known if made.revoked_ms is None and made.grant == grant), None)


def _granted(
    connection: Connection,
    account: str,
    grants: Sequence[Grant],
    actor: str,
    now_ms: int,
    same_of: Callable[[Sequence[Override], Grant], Override | None],
    *,
    replaces: bool = False,
) -> list[Override]:
    for grant in grants:
        trail.check_said(("account", account), ("actor", actor), ("reason", grant.reason))
    new = {"account": account, "created_ms": now_ms, "audit_seq": 0, "audit_hash": "", "binding_number": 0}
    insert_new(connection, accounts, [new])
    heads = lock_accounts(connection, {account})
    known, made = _overrides(connection, account), list[Override]()
    for grant in grants:
        same = same_of(known, grant)
        if same is None:
            same = _made(connection, heads, Override(account, len(known) + 1, grant, actor, now_ms))
            known.append(same)
        made.append(same)
    for each in replaced(known, made) if replaces else ():
        _taken_back(connection, heads, each, actor, f"replaced: {grants[0].reason}", now_ms)
    save_heads(connection, heads)
    return made


def _made(connection: Connection, heads: dict[str, Head], made: Override) -> Override:
    grant = made.grant
    row = {
        "account": made.account, "number": made.number, "feature": grant.feature, "kind": grant.kind.value,
        "source": grant.source, "operation": grant.operation.value, "value_json": encode_value(grant.value),
        "starts_ms": grant.starts_ms, "ends_ms": grant.ends_ms, "actor": made.actor, "reason": grant.reason,
        "made_ms": made.made_ms, "revoked_ms": None,
    }  # fmt: skip
    connection.execute(insert(overrides), row)
    _audited(connection, heads, made, None, row, made.actor, grant.reason, made.made_ms)
    return made


def _revoke(connection: Connection, account: str, number: int, actor: str, reason: str, now_ms: int) -> Override:
    trail.check_said(("actor", actor), ("reason", reason))
    heads = lock_accounts(connection, {account})
    found = [made for made in _overrides(connection, account) if made.number == number]
    if not found:
        raise InvalidInput("number", f"account {account!r} has no override {number}: see `tidemark account overrides`")
    if found[0].revoked_ms is not None:
        return _with_revokers(connection, account, found)[0]
    made = _taken_back(connection, heads, found[0], actor, reason, now_ms)
    save_heads(connection, heads)
    return made


def _taken_back(
    connection: Connection, heads: dict[str, Head], made: Override, actor: str, reason: str, now_ms: int
) -> Override:
    here = (overrides.c.account == made.account) & (overrides.c.number == made.number)
    connection.execute(update(overrides).where(here).values(revoked_ms=now_ms))
    before, after = {"revoked_ms": None}, {"revoked_ms": now_ms}
    _audited(connection, heads, made, before, after, actor, reason, now_ms, cause=REVOKE_COMMAND)
    return made._replace(revoked_ms=now_ms, revoked_by=actor, revoked_reason=reason)


def _with_revokers(connection: Connection, account: str, made: Sequence[Override]) -> list[Override]:
    """Overrides with who took them back and why, which the audit keeps: the row that was not the first one."""
    gone = {str(each.number) for each in made if each.revoked_ms is not None}
    wanted = select(audit.c.entity_id, audit.c.actor, audit.c.reason).where(
        audit.c.account == account,
        audit.c.entity == ENTITY,
        audit.c.entity_id.in_(gone),
        audit.c.before_json.is_not(None),
    )
    by_number = {row[0]: (row[1], row[2]) for row in connection.execute(wanted)} if gone else {}
    return [
        each._replace(revoked_by=said[0], revoked_reason=said[1]) if (said := by_number.get(str(each.number))) else each
        for each in made
    ]


def _audited(
    connection: Connection,
    heads: dict[str, Head],
    made: Override,
    before: object,
    after: object,
    actor: str,
    reason: str,
    now_ms: int,
    cause: str = OVERRIDE_COMMAND,
) -> None:
    head = heads[made.account]
    row = trail.next_row(
        head,
        made.account,
        now_ms,
        actor=actor,
        cause=cause,
        entity=(ENTITY, str(made.number)),
        before=before,
        after=after,
        reason=reason,
    )
    trail.append(connection, [(row, head.audit_hash)])


def _overrides(connection: Connection, account: str) -> list[Override]:
    wanted = select(overrides).where(overrides.c.account == account).order_by(overrides.c.number)
    return [
        Override(
            row["account"],
            row["number"],
            Grant(
                row["feature"],
                SourceKind(row["kind"]),
                row["source"],
                Operation(row["operation"]),
                decode_value(row["value_json"]),
                row["starts_ms"],
                row["ends_ms"],
                cause=row["actor"],
                reason=row["reason"],
            ),
            row["actor"],
            row["made_ms"],
            row["revoked_ms"],
        )
        for row in connection.execute(wanted).mappings()
    ]
