"""The rules of a catalog that no single field can break. Each finding has the path of its field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from aggregators.catalog_prices import amounts_of, metered_currencies, minor_text
from aggregators.yaml_lines import Path
from schemas.catalog import (
    QUANTITY,
    UNLIMITED,
    Add,
    AddOn,
    Amounts,
    Catalog,
    CreditPool,
    FeatureType,
    GrantValue,
    Merge,
    Plan,
    PriceLine,
    TierLine,
)
from schemas.currencies import EXPONENTS

Found = tuple[Path, str]

_MERGES: Final = {
    FeatureType.FLAG: (Merge.ANY,), FeatureType.CONFIG: (Merge.FIRST,),
    FeatureType.LIMIT: (Merge.MAX, Merge.SUM), FeatureType.SEAT: (Merge.MAX, Merge.SUM),
}  # fmt: skip
_FORMS: Final = {
    FeatureType.FLAG: "true or false",
    FeatureType.LIMIT: "a number, unlimited or {add: NUMBER}",
    FeatureType.SEAT: "a number, unlimited, quantity or {add: NUMBER}",
    FeatureType.CONFIG: "a map of settings",
}


def broken_rules(catalog: Catalog) -> list[Found]:
    """Everything that contradicts something else in the catalog."""
    found = [*_currencies(catalog), *_features(catalog), *_references(catalog), *_pools(catalog), *_twice(catalog)]
    found += [*_coupons(catalog), *_portal(catalog), *_dunning(catalog)]
    for name, plan in catalog.plans.items():
        path: Path = ("plans", name)
        found += _plan_references(catalog, path, plan)
        found += _grants(catalog, (*path, "grants"), plan.grants, plan)
        if plan.trial:
            found += _grants(catalog, (*path, "trial", "grants"), plan.trial.grants, plan)
        found += _limits(catalog, path, plan)
        found += _intervals(path, plan)
        found += _sale(path, plan)
        for index, line in enumerate(plan.prices):
            here = (*path, "prices", index)
            found += _metered(catalog, here, line, plan) if line.meter else _licensed(catalog, here, line)
            for within, amounts in amounts_of(line):
                found += _amounts(catalog, (*here, *within), amounts)
    for name, addon in catalog.addons.items():
        found += _addon(catalog, ("addons", name), addon)
    return found


def _currencies(catalog: Catalog) -> Iterator[Found]:
    for currency, exponent in catalog.currencies.items():
        at_stripe = EXPONENTS.get(currency)
        if at_stripe is None:
            near = get_close_matches(currency, EXPONENTS, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "take the three letters of ISO 4217, such as usd"
            yield ("currencies", currency), f"Stripe has no currency {currency}: {hint}"
        elif exponent != at_stripe:
            yield ("currencies", currency), f"Stripe counts {currency} with {at_stripe} decimals, not {exponent}"


def _features(catalog: Catalog) -> Iterator[Found]:
    meters = {meter.slug for meter in catalog.meters}
    for name, feature in catalog.features.items():
        path: Path = ("features", name)
        if feature.merged_by not in _MERGES[feature.type]:
            words = " or ".join(_MERGES[feature.type])
            yield path, f"merge: say what two subscriptions give together; a {feature.type} takes {words}"
        if (feature.type is FeatureType.LIMIT) != (feature.meter is not None):
            seat = "a number of things that exist at once, such as projects, is `type: seat`"
            yield path, f"a limit needs the meter that it limits, and no other feature has one; {seat}"
        elif feature.meter and feature.meter not in meters:
            yield (*path, "meter"), f"there is no meter {feature.meter}"
        if feature.stripe_feature and feature.type is not FeatureType.FLAG:
            yield (*path, "stripe_feature"), "only a flag can be a feature at Stripe"


def _references(catalog: Catalog) -> Iterator[Found]:
    default, fallback = catalog.defaults.plan, catalog.dunning.fallback_plan
    for path, name in ((("defaults", "plan"), default), (("dunning", "fallback_plan"), fallback)):
        plan = catalog.plans.get(name or "")
        if name and plan is None:
            yield path, f"there is no plan {name}"
        elif plan and plan.prices:
            yield path, f"{name} has prices: an account without a subscription can only have a plan with `prices: none`"


def _dunning(catalog: Catalog) -> Iterator[Found]:
    times = catalog.dunning
    for earlier, later in (("urgent_days", "final_days"), ("win_back_days", "give_up_days")):
        if getattr(times, earlier) > getattr(times, later):
            yield ("dunning", earlier), f"comes after {later}: say a smaller number of days"


def _pools(catalog: Catalog) -> Iterator[Found]:
    meters = {meter.slug for meter in catalog.meters}
    modes: dict[str, tuple[str, str]] = {}
    for name, pool in catalog.credit_pools.items():
        path: Path = ("credit_pools", name)
        for meter in pool.covers:
            other, mode = modes.setdefault(meter, (name, pool.mode))
            if meter not in meters:
                yield (*path, "covers", meter), f"there is no meter {meter}"
            elif mode != pool.mode:
                both = "a pool of ours and a credit grant of Stripe would both pay for the same usage"
                yield (*path, "covers", meter), f"{other} pays for {meter} in mode {mode}: {both}"
        if pool.mode == "stripe":
            yield from _money_pool(catalog, path, pool)
        for pack_name, pack in pool.packs.items():
            yield from _whole_amounts(catalog, (*path, "packs", pack_name), dict(pack.amounts))
        if pool.top_up and pool.top_up.pack not in pool.packs:
            yield (*path, "top_up", "pack"), f"the pool has no pack {pool.top_up.pack}"


def _money_pool(catalog: Catalog, path: Path, pool: CreditPool) -> Iterator[Found]:
    """Stripe keeps credits in money, draws what the usage costs, and bills the rest."""
    if pool.unit not in catalog.currencies:
        yield (*path, "unit"), "a pool of mode stripe is money, in minor units: name one of currencies, such as usd"
    for meter, rate in pool.covers.items():
        if rate != "1":
            yield (*path, "covers", meter), "Stripe draws what the usage costs: say 1 in mode stripe"
    if pool.overdraft != "bill":
        yield (*path, "overdraft"), "Stripe bills what its grants do not pay: say bill in mode stripe"
    if pool.top_up:
        yield (*path, "top_up"), "Stripe says what is left when an invoice is final, which is too late: remove it"
    for name, pack in pool.packs.items():
        if other := sorted(pack.amounts.keys() - {pool.unit}):
            yield (*path, "packs", name, other[0]), f"grants in {pool.unit} pay no invoice in {other[0]}: remove it"


def _coupons(catalog: Catalog) -> Iterator[Found]:
    for name, coupon in catalog.coupons.items():
        path: Path = ("coupons", name)
        if (coupon.percent_off is None) == (not coupon.amount_off):
            yield path, "a coupon takes off either percent_off or amount_off: give one of them"
        elif coupon.percent_off is not None and not Decimal(coupon.percent_off):
            yield (*path, "percent_off"), "a coupon takes off more than 0 percent"
        if (coupon.duration == "repeating") != (coupon.duration_months is not None):
            yield path, "duration_months is for `duration: repeating`, which needs it"
        yield from _whole_amounts(catalog, (*path, "amount_off"), coupon.amount_off)


def _whole_amounts(catalog: Catalog, path: Path, amounts: Amounts) -> Iterator[Found]:
    """Amounts of what is not multiplied by a quantity of usage: Stripe takes whole minor units above 0."""
    found = list(_amounts(catalog, path, amounts))
    yield from found
    for currency, amount in () if found else amounts.items():
        minor = minor_text(amount, catalog.currencies[currency])
        if "." in minor or minor == "0":
            yield (*path, currency), f"{amount} is no amount that can be paid at once: give whole minor units above 0"


def _portal(catalog: Catalog) -> Iterator[Found]:
    for index, name in enumerate(catalog.portal.change_to if catalog.portal else ()):
        path: Path = ("portal", "change_to", index)
        plan = catalog.plans.get(name)
        if plan is None:
            yield path, f"there is no plan {name}"
        elif len(plan.prices) != 1 or plan.prices[0].meter:
            words = "nothing to pay" if not plan.prices else "usage" if len(plan.prices) == 1 else "several components"
            yield path, f"{name} has {words}: Stripe's portal changes only to a plan with one component paid ahead"


def _twice(catalog: Catalog) -> Iterator[Found]:
    """A price is that of one component of one plan: its lookup key, `tm.PLAN.vVERSION.COMPONENT…`, says of which."""
    for name, plan in catalog.plans.items():
        seen: set[str] = set()
        for index, line in enumerate(plan.prices):
            if line.component in seen:
                yield (
                    ("plans", name, "prices", index),
                    f"the plan has a component {line.component} already: its prices could not be told apart",
                )
            seen.add(line.component)
    for name in sorted(catalog.plans.keys() & catalog.addons.keys()):
        yield ("addons", name), f"a plan is called {name} too: their prices could not be told apart"
    yield from _titles_twice(catalog)


def _titles_twice(catalog: Catalog) -> Iterator[Found]:
    """Invoices and answers show the name, so customers could not tell two plans of one name apart. Both are found."""
    titled: dict[str, list[Path]] = {}
    for part, sold in (("plans", catalog.plans), ("addons", catalog.addons)):
        for name, each in sold.items():
            if each.name:
                titled.setdefault(" ".join(each.name.split()).casefold(), []).append((part, name, "name"))
    for paths in titled.values():
        for path in paths if len(paths) > 1 else ():
            others = ", ".join(str(other[1]) for other in paths if other != path)
            yield path, f"{others} is shown to customers by this name too: give each a name of its own"


def _offers(line: PriceLine) -> set[tuple[str, str]]:
    return {(interval.value, currency) for interval, amounts in line.amounts() for currency in amounts}


def _amounts(catalog: Catalog, path: Path, amounts: Amounts) -> Iterator[Found]:
    for currency, amount in amounts.items():
        if currency not in catalog.currencies:
            yield (*path, currency), f"currencies does not have {currency}: add it with its number of decimals"
            continue
        try:
            minor_text(amount, catalog.currencies[currency])
        except ValueError as error:
            yield (*path, currency), str(error)


def _plan_references(catalog: Catalog, path: Path, plan: Plan) -> Iterator[Found]:
    metered = {line.meter for line in plan.prices if line.meter}
    for field, names, known, what in (
        ("over_limit", plan.over_limit, catalog.features, "feature"),
        ("spend_cap", plan.spend_cap, metered, "metered component of the plan for"),
        ("included", plan.included.meters, metered, "metered component of the plan for"),
    ):
        for name in names:
            if name not in known:
                yield (*path, field, name), f"there is no {what} {name}"
    for meter, amounts in plan.spend_cap.items():
        yield from _amounts(catalog, (*path, "spend_cap", meter), amounts)
    for index, credit in enumerate(plan.credits):
        if credit.pool not in catalog.credit_pools:
            yield (*path, "credits", index, "pool"), f"there is no credit pool {credit.pool}"
        elif credit.rollover_max and catalog.credit_pools[credit.pool].mode == "stripe":
            yield (*path, "credits", index, "rollover_max"), "grants at Stripe end with their period: say 0"
    if plan.trial and metered and "pause" in (plan.trial.ends.no_card, plan.trial.ends.card):
        yield (*path, "trial", "ends"), "Stripe cannot pause a subscription with metered components at a trial's end"
    if plan.trial and plan.trial.ends.card == "pause":
        yield (*path, "trial", "ends", "card"), "Stripe pauses only without a card at a trial's end: convert or cancel"


def _grants(catalog: Catalog, path: Path, grants: dict[str, GrantValue], plan: Plan | None) -> Iterator[Found]:
    paid = {line.quantity for line in plan.prices} if plan else set()
    for name, value in grants.items():
        feature = catalog.features.get(name)
        if feature is None:
            yield (*path, name), f"there is no feature {name}"
            continue
        if not _fits(feature.type, value):
            yield (*path, name), f"{name} is a {feature.type}: grant {_FORMS[feature.type]}"
        elif value == QUANTITY and feature.type is FeatureType.SEAT and name not in paid:
            yield (*path, name), f"no component of the plan has `quantity: {name}`, so no quantity is paid"


def _fits(kind: FeatureType, value: GrantValue) -> bool:
    if kind is FeatureType.FLAG:
        return isinstance(value, bool)
    if kind is FeatureType.CONFIG:
        return isinstance(value, dict)
    is_number = (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, Add)
    return is_number or value == UNLIMITED or (value == QUANTITY and kind is FeatureType.SEAT)


def _limits(catalog: Catalog, path: Path, plan: Plan) -> Iterator[Found]:
    """What is included is paid with the base price, so a limit below it would take away what was paid."""
    paid = {line.quantity: line.included for line in plan.prices if line.quantity and line.included}
    for name, value in plan.grants.items():
        feature = catalog.features.get(name)
        included = (plan.included.meters.get(feature.meter or "") or paid.get(name)) if feature else None
        if included and isinstance(value, int) and not isinstance(value, bool) and value < included:
            yield (*path, "grants", name), f"the limit {value} is below the {included} that the price includes"


def _intervals(path: Path, plan: Plan) -> Iterator[Found]:
    """An account has one billing period for usage."""
    named = {plan.usage_interval} - {None}
    for index, line in enumerate(plan.prices):
        if line.meter:
            named |= {interval for interval, _ in line.amounts()}
            if len(named) > 1:
                words = " and ".join(sorted(str(each) for each in named))
                yield (*path, "prices", index), f"usage is billed by {words}: a plan has one usage interval"
                return


def _sale(path: Path, plan: Plan) -> Iterator[Found]:
    """Whoever buys a plan buys all its components, in one interval and currency."""
    licensed = [(index, line) for index, line in enumerate(plan.prices) if not line.meter]
    offers = _offers(licensed[0][1]) if licensed else set()
    for index, line in licensed[1:]:
        if missing := sorted(_words(offers ^ _offers(line))):
            first = licensed[0][1]
            both = f"{line.component} and {first.component} differ in {', '.join(missing)}"
            remedy = "; ".join([*_to_add(line, first), *_to_add(first, line)])
            yield (*path, "prices", index), f"{both}: nobody could buy the plan so; {remedy}"
    currencies = {currency for _, currency in offers}
    for index, line in enumerate(plan.prices):
        if line.meter and (missing := sorted(currencies - set(metered_currencies(line)))):
            yield (
                (*path, "prices", index),
                f"the component has no price in {', '.join(missing)}, which others have: add it",
            )


def _to_add(lacking: PriceLine, other: PriceLine) -> Iterator[str]:
    """What one component needs to be sold as the other one."""
    for interval, amounts in other.amounts():
        own = getattr(lacking, interval.value)
        if new := [f"`{currency}:`" for currency in amounts if currency not in own]:
            what = f"{', '.join(new)} to `{interval.value}:` of" if own else f"`{interval.value}:` to"
            yield f"add {what} {lacking.component}, or remove it from {other.component}"


def _words(offers: set[tuple[str, str]]) -> Sequence[str]:
    return [f"{interval} {currency}" for interval, currency in offers]


def _licensed(catalog: Catalog, path: Path, line: PriceLine) -> Iterator[Found]:
    if line.tiers or line.unit:
        yield path, "only a component with a meter has a unit and tiers"
    elif not any(True for _ in line.amounts()):
        yield path, "the component has no price: give month or year, each with its currencies"
    if line.quantity:
        feature = catalog.features.get(line.quantity)
        if feature is None or feature.type is not FeatureType.SEAT:
            yield (*path, "quantity"), f"there is no feature {line.quantity} of type seat"
    elif line.included:
        yield (*path, "included"), "only a component with a quantity includes some of it"
    if line.package and line.included:
        yield (*path, "package"), "Stripe cannot bill packages and tiers, which `included` needs, in one price"


def _metered(catalog: Catalog, path: Path, line: PriceLine, plan: Plan) -> Iterator[Found]:
    meter = next((each for each in catalog.meters if each.slug == line.meter), None)
    included = plan.included.meters.get(line.meter or "")
    if meter is None:
        yield (*path, "meter"), f"there is no meter {line.meter}"
    elif line.unit != meter.unit:
        yield (*path, "unit"), f"the price is for {line.unit or 'no unit'}, and the meter counts {meter.unit}"
    elif not meter.stripe_event_name:
        yield (*path, "meter"), f"{meter.slug} is not reported to Stripe: give it a stripe_event_name"
    if line.quantity or line.included:
        yield path, "usage is not paid ahead: a metered component has no quantity, and the plan says what is included"
    if line.package and (line.tiers or included):
        yield (*path, "package"), "Stripe cannot bill packages and tiers, which `included` needs, in one price"
    intervals = sum(1 for _ in line.amounts())
    if line.tiers and intervals:
        yield path, "give the amounts in tiers or by interval, not both"
    elif line.tiers:
        yield from _tiers((*path, "tiers"), line.tiers, included)
    elif not intervals:
        yield path, "the component has no price: give month: {usd: …} or tiers"


def _tiers(path: Path, tiers: Sequence[TierLine], included: int | None) -> Iterator[Found]:
    bounds = [included if tier.up_to == "included" else tier.up_to for tier in tiers]
    numbers = [bound for bound in bounds[:-1] if isinstance(bound, int)]
    if bounds[-1] != "inf" or len(numbers) != len(tiers) - 1 or numbers != sorted(set(numbers)):
        yield path, "up_to must rise from tier to tier, and the last one alone is inf"
    currencies = tiers[-1].price.keys() | tiers[-1].flat.keys()
    for index, tier in enumerate(tiers):
        if tier.price.keys() | tier.flat.keys() != currencies:
            yield (*path, index), f"all tiers have a price in the same currencies: {', '.join(sorted(currencies))}"
    is_free = not any(amount.strip("0.") for amount in (*tiers[0].price.values(), *tiers[0].flat.values()))
    if tiers[0].up_to == "included" and not included:
        yield (*path, 0), "the plan includes nothing of the meter: give included: {METER: QUANTITY}"
    elif included and (bounds[0] != included or not is_free):
        yield (*path, 0), f"the plan includes {included}: the first tier must end there and cost 0"


def _addon(catalog: Catalog, path: Path, addon: AddOn) -> Iterator[Found]:
    for index, plan in enumerate(addon.plans):
        if plan not in catalog.plans:
            yield (*path, "for", index), f"there is no plan {plan}"
    if not any(True for _ in addon.price.amounts()):
        yield (*path, "price"), "the add-on has no price: give month or year, each with its currencies"
    for interval, amounts in addon.price.amounts():
        yield from _amounts(catalog, (*path, "price", interval.value), amounts)
    yield from _grants(catalog, (*path, "grants"), addon.grants, None)
