"""What a plan of the catalog and drift say to people: amounts, grants, and differences as old → new."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any, Final

from schemas.catalog import QUANTITY, Add, AddOn, GrantValue, Plan, PlanId, Price
from schemas.catalog_changes import StripePortal
from schemas.currencies import currency_exponent
from schemas.prices import CouponTerms, PackPrice, PortalTerms, PriceTier

_NONE: Final = "none"
# The fields whose names no file has.
_FIELDS: Final = {"unit_minor": "amount", "amount_minor": "amount", "package": "units in a package"}


def differences_text(old: Any, new: Any) -> str:
    """The fields in which a value differs, each as old → new."""
    return ", ".join(
        change_text(_FIELDS.get(field, field), _value_text(field, old), _value_text(field, new))
        for field in new._fields
        if getattr(old, field) != getattr(new, field)
    )


def change_text(field: str, old: str, new: str) -> str:
    """A change for people; an empty value is "none"."""
    return f"{field} {old or _NONE} → {new or _NONE}"


def _value_text(field: str, holder: Any) -> str:
    """A field of a NamedTuple for people; amounts in major units."""
    value = getattr(holder, field)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not value:
        return _NONE
    if field in ("unit_minor", "amount_minor"):
        return _major(str(value), currency_exponent(holder.currency))
    return _tiers_text(value, currency_exponent(holder.currency)) if field == "tiers" else str(value)


def gives_lines(plan: PlanId, sold: Plan | AddOn, before: tuple[PlanId, Plan | AddOn] | None) -> list[str]:
    """What a version gives, a line for each feature: "members: 3 → 5" if another version or the same one gave something
    else `before`, or else "members: 5"."""
    new, old = _all_grants(sold), _all_grants(before[1]) if before else {}
    lines = [f"{plan} gives{f' (before: {before[0]})' if before and before[0] != plan else ''}:"]
    for name in dict.fromkeys([*new, *old]):
        now, then = (grant_text(each[name]) if name in each else _NONE for each in (new, old))
        lines.append(f"  {name}: {now if before is None or now == then else f'{then} → {now}'}")
    return lines if len(lines) > 1 else []


def _all_grants(sold: Plan | AddOn) -> Mapping[str, GrantValue]:
    """The grants by feature, also those of a trial."""
    trial = sold.trial.grants if isinstance(sold, Plan) and sold.trial else {}
    return {**sold.grants, **{f"{name} in a trial": value for name, value in trial.items()}}


def grant_text(value: GrantValue) -> str:
    """What is granted of a feature."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Add):
        return f"{value.add} more"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(each)}" for name, each in value.items())
    return "as many as are paid" if value == QUANTITY else str(value)


def _setting(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def portal_differences(found: StripePortal, terms: PortalTerms, *, is_drift: bool = False) -> str:
    """In what the portal's configuration differs, as old → new. In drift, Stripe's is the new one."""
    archived = "" if found.is_active else "archived"
    cut = [each._replace(products=()) for each in (found.terms, terms)]
    old, new = reversed(cut) if is_drift else cut
    words = [archived, differences_text(old, new), "" if found.terms.products == terms.products else "other prices"]
    return ", ".join(each for each in words if each)


def coupon_text(terms: CouponTerms) -> str:
    """What a coupon takes off, for people."""
    amount = f"{terms.percent} %"
    if not terms.percent:
        amount = f"{_major(str(terms.amount_minor), currency_exponent(terms.currency))} {terms.currency}"
    return f"{amount} off, {terms.duration}{f' for {terms.months} months' if terms.months else ''}"


def amounts_text(price: Price | PackPrice) -> str:
    """What a price costs, for people, in major units."""
    terms = price.terms
    package = f" for each {terms.package}" if terms.package > 1 else ""
    package += f" for {price.credits} credits" if isinstance(price, PackPrice) else ""
    if not terms.tiers:
        return f"{_major(terms.unit_minor or '0', price.exponent)} {terms.currency}{package}"
    return f"{terms.currency}, {terms.mode}: {_tiers_text(terms.tiers, price.exponent)}"


def _tiers_text(tiers: tuple[PriceTier, ...], exponent: int) -> str:
    return ", ".join(
        f"{f'{_major(tier.flat_minor, exponent)} and ' if tier.flat_minor != '0' else ''}"
        f"{_major(tier.unit_minor, exponent)} {f'up to {tier.up_to}' if tier.up_to else 'beyond'}"
        for tier in tiers
    )


def _major(minor: str, exponent: int) -> str:
    """An amount in major units, with at least the currency's decimals."""
    with localcontext(prec=60):
        major = Decimal(minor).scaleb(-exponent)
        return f"{max(major.normalize(), major.quantize(Decimal(1).scaleb(-exponent)), key=_places):f}"


def _places(number: Decimal) -> int:
    return -int(number.as_tuple().exponent)


def count_text(count: int) -> str:
    """A number of subscriptions."""
    return f"{count} subscription{'s' if count != 1 else ''}"
