"""Compares what accounts may do, as SQL keeps it and gateways answer it, with what follows from Stripe, the catalogs
and the people."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from oracle.entitlements import EVER_MS, Linked, allowed, instants
from schemas.billing_events import ObjectKind, ObjectName
from schemas.entitlements import EntitlementVersion, Unlimited
from schemas.errors import InvalidInput
from simulation.gateways import FEATURES
from simulation.people import ENTITLED

if TYPE_CHECKING:
    from simulation.world import World

_Values = Mapping[str, Any]


async def unentitled(world: World) -> str:
    """A text that names what does not know the newest entitlements; empty if everything does."""
    if stale := await world.tables.entitlements.stale():
        return f"the entitlements of {stale[0]}"
    latest = await world.tables.entitlements.latest(ENTITLED)
    for slot, (process, checks, _) in sorted(world.gateways.serving.items()):
        if not process.alive:
            return f"{slot}, which is down"
        for account in ENTITLED:
            known, newest = (await checks.check(account, "sso", Decimal(1))).version, latest.get(account)
            if newest and known != newest.version:
                return f"{slot}, which knows version {known} of {account} and not {newest.version}"
    return ""


async def verify_access(world: World) -> None:
    """Make all comparisons."""
    _versions(world)
    rows, made = world.tables.rows("overrides"), world.people.made
    if len(rows) != made:
        world.fail("overrides", f"there are {len(rows)}, and people granted {made}")
    latest = await world.tables.entitlements.latest(ENTITLED)
    expected = _Expected(world)
    for account in ENTITLED:
        if account in latest:
            _snapshot(world, expected, latest[account])
        await _answers(world, expected, account)


class _Expected:
    """What the oracle says, with Stripe's objects read once."""

    def __init__(self, world: World) -> None:
        self._shop = world.commerce.shop()
        self._people = world.people.granted
        self._links: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in sorted(world.tables.rows("account_customers"), key=lambda row: row["starts_ms"]):
            self._links[row["account"]].append(row)
        newest = sorted(world.tables.rows("dunning_cases"), key=lambda row: (row["found_ms"], row["opened_ms"]))
        cases = {row["subscription_id"]: row for row in newest}
        self._cases: Mapping[str, int | None] = {
            name: row["downgrade_ms"] for name, row in cases.items() if row["outcome"] != "written_off"
        }
        self._subscriptions = [
            _body(world, name) for name in world.account.listing() if name.kind is ObjectKind.SUBSCRIPTION
        ]

    def values(self, account: str, instant_ms: int) -> _Values:
        """The value of each feature."""
        people = [made.grant for made in self._people if made.account == account]
        return allowed(self._shop, self._linked(account), self._of(account), people, instant_ms, self._cases)

    def instants(self, account: str) -> list[int]:
        """When something may change."""
        people = [made.grant for made in self._people if made.account == account]
        return [*instants(self._linked(account), self._of(account), people), *filter(None, self._cases.values())]

    def _linked(self, account: str) -> list[Linked]:
        rows = self._links[account]
        ends = [row["starts_ms"] for row in rows[1:]] + [EVER_MS]
        return [Linked(row["customer_id"], row["starts_ms"], end_ms) for row, end_ms in zip(rows, ends, strict=False)]

    def _of(self, account: str) -> list[dict[str, Any]]:
        customers = {link.customer for link in self._linked(account)}
        return [body for body in self._subscriptions if body["customer"] in customers]


def _body(world: World, name: ObjectName) -> dict[str, Any]:
    """A subscription with its schedule's body."""
    body = world.account.read(name) or {}
    schedule = body["schedule"] and world.account.read(ObjectName(ObjectKind.SCHEDULE, body["schedule"]))
    return {**body, "schedule": schedule}


def _versions(world: World) -> None:
    """The versions of an account rise by one, and each has other inputs than the one before."""
    versions: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in world.tables.rows("entitlement_versions"):
        versions[row["account"]].append(row)
    for account, rows in versions.items():
        rows.sort(key=lambda row: row["version"])
        if [row["version"] for row in rows] != list(range(1, len(rows) + 1)):
            world.fail("entitlements", f"{account} has the versions {[row['version'] for row in rows]}")
        for before, after in pairwise(rows):
            if before["inputs_sha256"] == after["inputs_sha256"]:
                world.fail("entitlements", f"{account}: version {after['version']} has the inputs of the one before")


def _snapshot(world: World, expected: _Expected, version: EntitlementVersion) -> None:
    """The kept segments are right now and at each later change, and just before it. Of earlier instants, the versions
    before say what was allowed."""
    account, segments, now_ms = version.account, json.loads(version.segments), world.clock.now_ms()
    changes = {*expected.instants(account), *(segment["from_ms"] for segment in segments)}
    ahead = {instant_ms for change in changes for instant_ms in (change - 1, change) if instant_ms > now_ms}
    for instant_ms in sorted({now_ms, *ahead}):
        held = [segment for segment in segments if segment["from_ms"] <= instant_ms] or segments[:1]
        found = {name: _read(each["value"]) for name, each in held[-1]["features"].items()}
        wanted = expected.values(account, instant_ms)
        if _differs(world, f"version {version.version} of {account} at {instant_ms}", wanted, found):
            return


async def _answers(world: World, expected: _Expected, account: str) -> None:
    """Each gateway answers what follows now."""
    for slot, (_, checks, clock) in sorted(world.gateways.serving.items()):
        found: dict[str, Any] = {}
        begins_ms = clock.now_ms()
        for feature in FEATURES:
            try:
                decision = (await checks.check(account, feature, Decimal(1), Decimal(0))).decision
            except InvalidInput as error:
                world.fail("gateways", f"{slot}: {error}")
                return
            if decision.limit is not None:
                found[feature] = math.inf if isinstance(decision.limit, Unlimited) else int(decision.limit)
            else:
                found[feature] = decision.allowed if decision.value is None else json.loads(decision.value)
        wanted, after = (expected.values(account, at_ms) for at_ms in (begins_ms, clock.now_ms()))
        if wanted == after:
            _differs(world, f"{slot} of {account}", {feature: wanted[feature] for feature in FEATURES}, found)


def _differs(world: World, what: str, expected: _Values, found: _Values) -> bool:
    keys = [key for key in sorted({**expected, **found}) if expected.get(key) != found.get(key)]
    if keys:
        shown = "; ".join(f"{key}: {expected.get(key)}, found {found.get(key)}" for key in keys)
        world.fail("entitlements", f"{what}: {shown}")
    return bool(keys)


def _read(value: Any) -> Any:
    """A value of the kept text: a truth value, a number, `unlimited`, or JSON behind a colon."""
    if isinstance(value, bool):
        return value
    if value.startswith(":"):
        return json.loads(value[1:])
    return math.inf if value == "unlimited" else int(value)
