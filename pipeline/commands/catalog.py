"""The commands about the catalog: plan a change, apply exactly that plan, and find what Stripe has otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from aggregators.catalog import CatalogProblem, read_catalog
from aggregators.catalog_drift import attachable, drift_of
from aggregators.catalog_plan import (
    IN_SQL,
    World,
    coupons_to_read,
    kept_versions,
    plan_catalog,
    records_of,
    states_after,
    touched_by,
    wanted,
    with_features,
)
from aggregators.catalog_words import count_text
from pipeline.commands.operations import checked_meter_set
from pipeline.open import (
    apply_meter_set,
    meter_set_in_force,
    open_base,
    open_side_tables,
    open_stripe,
    open_stripe_catalog,
    read_bytes,
    succeeding,
)
from pipeline.settings import Settings
from schemas.catalog import Catalog, PlanId
from schemas.catalog_changes import (
    NO_ACCOUNT,
    Action,
    AtStripe,
    CatalogKind,
    CatalogObjects,
    CatalogPlan,
    CatalogStore,
    Standing,
    Verb,
)
from schemas.clock import Clock
from schemas.errors import InvalidInput
from schemas.meters import MeterSet
from schemas.prices import PortalTerms
from schemas.reports import StripeCatalog
from schemas.side_tables import AuditRow

# A product's features or a coupon each; Stripe allows 25 requests a second.
READS_AT_ONCE: Final = 8
PLAN_BYTES_MAX: Final = 64 << 20
_PLAN: Final = TypeAdapter(CatalogPlan)
_DIGEST_LINE: Final = re.compile(rb"[0-9a-f]{64}\n")

Told = Callable[[str], None]
_Found = TypeVar("_Found")


class Parts(NamedTuple):
    """What a plan and its application need. `meter_set` reads the meter set in force, and `apply_meter_set` appends
    another one to the log."""

    clock: Clock
    store: CatalogStore
    objects: CatalogObjects
    meters: StripeCatalog
    meter_set: Callable[[], Awaitable[MeterSet | None]]
    apply_meter_set: Callable[[MeterSet], Awaitable[None]]


class Checked(NamedTuple):
    """A plan, and the warnings of the file; or what is wrong with the file."""

    plan: CatalogPlan | None
    problems: Sequence[CatalogProblem]


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Parts]:
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        objects = await open_stripe_catalog(base)
        stack.push_async_callback(objects.close)
        meters = open_stripe(settings)
        assert meters is not None, "open_stripe_catalog raises without a key"  # noqa: S101  # for the type checker
        stack.push_async_callback(meters.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield Parts(
            base.clock,
            tables.catalog,
            objects,
            meters,
            partial(meter_set_in_force, settings),
            partial(apply_meter_set, base),
        )


async def plan_file(settings: Settings, path: Path, *, in_place: bool = False) -> Checked:
    """Compare a catalog file with SQL, Stripe and the log. Writes nothing."""
    async with _opened(settings) as parts:
        return await plan_content(parts, read_bytes(path), in_place=in_place)


async def plan_content(parts: Parts, content: bytes, *, in_place: bool = False) -> Checked:
    """The plan of a file's bytes."""
    catalog, problems = read_catalog(content, (await parts.store.standing()).sold())
    if catalog is None:
        return Checked(None, problems)
    plan, _, _ = await _planned(parts, catalog, in_place=in_place)
    return Checked(plan, problems)


async def apply_file(settings: Settings, saved: CatalogPlan, actor: str, reason: str, told: Told) -> bool:
    """Execute a plan; see `apply_plan`."""
    async with _opened(settings) as parts:
        return await apply_plan(parts, saved, actor, reason, told)


async def apply_plan(parts: Parts, saved: CatalogPlan, actor: str, reason: str, told: Told) -> bool:
    """Execute a plan; whether there was anything to do. What was done already is not done again.

    Safe to repeat after a crash or an error at any place. Raises `InvalidInput` if more or other things would have to
    be done than the plan says, because the world has changed since.
    """
    plan, world, meter_set = await _planned(parts, saved.catalog, in_place=saved.in_place)
    _check_unchanged(saved, plan, world.standing)
    if world.standing.sha256 == saved.sha256 and not plan.actions:
        return False
    await parts.store.begin_catalog(saved, actor, reason, parts.clock.now_ms())
    steps = _Steps(parts, plan.catalog, world, meter_set)
    for action in plan.actions:
        if action.what != IN_SQL and action.verb is not Verb.ARCHIVE:
            await steps.take(action)
            told(action_text(action))
    # Read once more, so that the rows name what Stripe holds now.
    records = records_of(saved.catalog, await parts.objects.read())
    await parts.store.activate_catalog(saved, states_after(saved.catalog, world), records, parts.clock.now_ms())
    for action in plan.actions:
        if action.verb is Verb.ARCHIVE:
            await steps.take(action)
        if action.verb is Verb.ARCHIVE or action.what == IN_SQL:
            told(action_text(action))
    return True


async def find_drift(settings: Settings) -> list[str]:
    """What Stripe has otherwise than it was applied."""
    async with _opened(settings) as parts:
        world = await _world(parts)
        if world.standing.catalog is None:
            raise InvalidInput("catalog", "none has been applied: tidemark catalog plan FILE --out PLAN")
        products = [product for product in attachable(world.standing) if product in world.stripe.products]
        return drift_of(await _with_parts(parts, world, products, coupons_to_read(world.standing.catalog)))


class Users(NamedTuple):
    """How many subscriptions of the mirror have a version, and how many others get it by a planned change."""

    now: int
    scheduled: int


async def show(settings: Settings) -> tuple[Standing, Mapping[PlanId, Users]]:
    """What SQL holds of the catalog, and who has each version."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        return await users_of(tables.catalog)


async def users_of(store: CatalogStore) -> tuple[Standing, Mapping[PlanId, Users]]:
    """The standing of a catalog, and who has each version; a version that nobody has or gets is not in it."""
    standing = await store.standing()
    now, later = [
        touched_by(World(standing, AtStripe(), await store.subscriptions_by_price(with_planned=planned)))
        for planned in (False, True)
    ]
    return standing, {plan: Users(now.get(plan, 0), count - now.get(plan, 0)) for plan, count in later.items()}


def users_text(users: Users) -> str:
    """Who has a version, in words."""
    scheduled = f"{users.scheduled} scheduled" if users.scheduled else ""
    return ", ".join(each for each in (count_text(users.now) if users.now else "", scheduled) if each)


async def history(settings: Settings) -> Sequence[AuditRow]:
    """Who applied which catalog, when and why, oldest first."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        return await tables.audit(NO_ACCOUNT)


async def _world(parts: Parts) -> World:
    return World(await parts.store.standing(), await parts.objects.read(), await parts.store.subscriptions_by_price())


async def _with_parts(parts: Parts, world: World, products: Sequence[str], coupons: Sequence[str]) -> World:
    """The world with the features of some products, and with some coupons."""
    attached = await _each(parts.objects.attached, products)
    found = await _each(parts.objects.coupon, coupons)
    stripe = world.stripe._replace(
        attached=attached, coupons={key: coupon for key, coupon in found.items() if coupon is not None}
    )
    return world._replace(stripe=stripe)


async def _each(read: Callable[[str], Awaitable[_Found]], keys: Sequence[str]) -> dict[str, _Found]:
    """What a reading call says of each key, a few calls at a time."""
    found: dict[str, _Found] = {}
    for first in range(0, len(keys), READS_AT_ONCE):
        some = keys[first : first + READS_AT_ONCE]
        found |= dict(zip(some, await asyncio.gather(*map(read, some)), strict=True))
    return found


async def _planned(parts: Parts, catalog: Catalog, *, in_place: bool) -> tuple[CatalogPlan, World, MeterSet]:
    """The plan with the meter set's part, the world that it was made from, and the meter set to apply."""
    world = await _world(parts)
    coupons = coupons_to_read(catalog, world.standing.catalog)
    world = await _with_parts(parts, world, with_features(catalog, world), coupons)
    plan = plan_catalog(catalog, world, in_place=in_place, drift=drift_of(world))
    current = await parts.meter_set()
    proposed = catalog.meter_set()
    try:
        proposed = succeeding(current, proposed)
        if current is not None and proposed.model_copy(update={"version": current.version}) == current:
            return plan, world, proposed
        change = checked_meter_set(current, proposed, "meters")
    except InvalidInput as error:
        return plan._replace(refusals=(*plan.refusals, str(error))), world, proposed
    action = Action(Verb.METER_SET, "meters", str(proposed.version), "; ".join(change.lines))
    return plan._replace(actions=(action, *plan.actions), is_final=change.is_final), world, proposed


def _check_unchanged(saved: CatalogPlan, plan: CatalogPlan, standing: Standing) -> None:
    """Raise `InvalidInput` unless everything that is left to do is in the saved plan."""
    if standing.sha256 not in (saved.base, saved.sha256):
        raise InvalidInput("plan", "another catalog has been applied since the plan was made: plan again")
    if standing.applying not in ("", saved.applying, saved.sha256):
        raise InvalidInput("plan", "another catalog is being applied since the plan was made: plan again")
    if plan.refusals:
        raise InvalidInput("plan", f"the world has changed since the plan was made: {plan.refusals[0]}")
    known = {action[:3] for action in saved.actions}
    for action in plan.actions:
        if action[:3] not in known:
            raise InvalidInput(
                "plan", f"the world has changed since the plan was made, which lacks this: {action_text(action)}"
            )


class _Steps:
    """Takes the steps of a plan outside SQL, one call each."""

    def __init__(self, parts: Parts, catalog: Catalog, world: World, meter_set: MeterSet) -> None:
        self._parts = parts
        self._wanted = wanted(catalog, kept_versions(states_after(catalog, world)))
        self._meter_set = meter_set
        self._records = world.standing.records
        stripe: AtStripe = world.stripe
        self._meters = {name: meter.id for name, meter in stripe.meters.items()}
        self._features = {key: feature.id for key, feature in stripe.features.items()}
        self._prices = {price.key: price.id for price in stripe.prices.values() if price.key}
        self._portal = stripe.portal.id if stripe.portal else ""

    async def take(self, action: Action) -> None:
        """Take one step."""
        objects, key = self._parts.objects, action.key
        match action.verb, action.what:
            case Verb.METER_SET, _:
                await self._parts.apply_meter_set(self._meter_set)
            case Verb.CREATE, CatalogKind.METER:
                await self._parts.meters.create_meter(key, self._wanted.meters[key])
            case Verb.CREATE, CatalogKind.PRODUCT:
                await objects.create_product(self._wanted.products[key][0])
            case Verb.UPDATE, CatalogKind.PRODUCT:
                await objects.update_product(self._wanted.products[key][0])
            case Verb.CREATE, CatalogKind.FEATURE:
                self._features[key] = await objects.create_feature(key, self._wanted.features[key])
            case Verb.ATTACH, _:
                feature, _, product = key.partition(" ")
                await objects.attach(product, self._features[feature])
            case Verb.CREATE, CatalogKind.PRICE:
                price = self._wanted.prices[key]
                meter = await self._meter_id(price.terms.event_name)
                self._prices[key] = await objects.create_price(price, meter)
            case Verb.UPDATE, CatalogKind.PRICE:
                await objects.set_active(CatalogKind.PRICE, self._prices[key], is_active=True)
            case Verb.UPDATE, CatalogKind.FEATURE:
                await objects.set_active(CatalogKind.FEATURE, self._features[key], is_active=True)
            case Verb.CREATE, CatalogKind.COUPON:
                await objects.create_coupon(self._wanted.coupons[key])
            case Verb.UPDATE, CatalogKind.COUPON:
                await objects.rename_coupon(key, self._wanted.coupons[key].name)
            case _, CatalogKind.PORTAL if self._wanted.portal is not None:
                await self._set_portal(self._wanted.portal, action.verb)
            case Verb.ARCHIVE, _:
                kind = CatalogKind(action.what)
                await objects.set_active(kind, self._records[kind, key].stripe_id, is_active=False)

    async def _set_portal(self, terms: PortalTerms, verb: Verb) -> None:
        if verb is Verb.CREATE:
            await self._parts.objects.create_portal(terms, self._prices)
        else:
            await self._parts.objects.update_portal(self._portal, terms, self._prices)

    async def _meter_id(self, event_name: str) -> str:
        """The id of a meter, which may be new; "" for a price without one."""
        if event_name and event_name not in self._meters:
            self._meters = {name: meter.id for name, meter in (await self._parts.objects.read()).meters.items()}
        return self._meters[event_name] if event_name else ""


_SIGNS: Final = {Verb.CREATE: "+", Verb.OPEN: "+", Verb.ATTACH: "+", Verb.RETIRE: "-", Verb.ARCHIVE: "-"}


def action_text(action: Action) -> str:
    """An action as a line."""
    name = f"{action.what} {action.key}" if action.verb is not Verb.METER_SET else f"meter set version {action.key}"
    if action.verb is Verb.ATTACH:
        name = f"{action.what} {' on '.join(action.key.split())}"
    return f"{_SIGNS.get(action.verb, '~')} {name}{f': {action.detail}' if action.detail else ''}"


def plan_lines(plan: CatalogPlan, *, with_actions: bool = True) -> list[str]:
    """A plan for people: what will be done, what it gives, who is touched, and what forbids it or differs at Stripe."""
    lines = [action_text(action) for action in plan.actions if with_actions]
    lines += [*plan.gives] if plan.actions else ["nothing to do"]
    lines += [f"{name}: {count_text(count)}" for name, count in plan.touched.items()]
    if plan.applying and plan.applying != plan.sha256:
        lines.append("another application was begun and not finished; this plan takes its place")
    lines += [f"drift: {line}" for line in plan.drift]
    return lines + [f"refused: {line}" for line in plan.refusals]


def plan_document(plan: CatalogPlan) -> dict[str, Any]:
    """A plan as JSON, without the catalog itself."""
    actions = [action._asdict() for action in plan.actions]
    return {**plan._asdict(), "catalog": plan.catalog.version, "actions": actions}


def save_plan(plan: CatalogPlan, path: Path) -> None:
    """Write a plan to a file: its hash in the first line, then the plan."""
    body = _PLAN.dump_json(plan)
    path.write_bytes(f"{sha256(body).hexdigest()}\n".encode() + body)


def is_plan(path: Path) -> bool:
    """Whether a file begins as `save_plan` writes one. Raises `InvalidInput` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _DIGEST_LINE.fullmatch(file.readline(66)) is not None
    except OSError as error:
        raise InvalidInput("plan", f"cannot read {path}: {error.strerror}") from error


def load_plan(path: Path) -> CatalogPlan:
    """Read a plan that `save_plan` wrote. Raises `InvalidInput` if it is not one, or was changed since."""
    try:
        with path.open("rb") as file:
            digest, _, body = file.read(PLAN_BYTES_MAX).partition(b"\n")
    except OSError as error:
        raise InvalidInput("plan", f"cannot read {path}: {error.strerror}") from error
    if digest != sha256(body).hexdigest().encode():
        raise InvalidInput("plan", f"{path} is not what `tidemark catalog plan --out` wrote: plan again")
    try:
        return _PLAN.validate_json(body)
    except ValidationError as error:
        raise InvalidInput("plan", f"{path} is a plan of another version of Tidemark: plan again") from error
