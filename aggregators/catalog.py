"""Reads a catalog file: YAML, the form of each field, `extends`, and the rules that no single field can break.

Every problem has its line and field, and all are found at once, as far as each stage can be understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aggregators.catalog_rules import broken_rules
from aggregators.catalog_warnings import warnings_of
from aggregators.yaml_lines import Path, Unreadable, read_yaml
from schemas.catalog import AddOn, Catalog, Plan, PlanId
from schemas.periods import Interval
from schemas.validation import YAML, problems

_MERGED: Final = ("grants", "over_limit", "spend_cap")
_INHERITED: Final = ("usage_interval", "prices", "included", "trial", "credits")
# How the fields are written whose form people guess: amounts stand in maps by currency, and usage in maps by meter.
_AMOUNTS: Final = '{usd: "50.00"}'
_SHAPES: Final[Mapping[str, str]] = {
    "spend_cap": f"spend_cap: {{METER: {_AMOUNTS}}}",
    "included": "included: {METER: 1000}",
    **{interval: f"{interval}: {_AMOUNTS}" for interval in Interval},
    "price": f"an add-on has price: {{month: {_AMOUNTS}}}, a tier has price: {_AMOUNTS}",
    "flat": f"flat: {_AMOUNTS}",
    "prices": f"a list of components, - {{component: base, month: {_AMOUNTS}}}, or none",
    "tiers": f"a list, - {{up_to: inf, price: {_AMOUNTS}}}",
    "grants": "grants: {FEATURE: 10}",
    "currencies": "currencies: {usd: 2}",
    "for": "for: [PLAN]",
    "features": "features: {NAME: {type: flag}}",
    "plans": "plans: {NAME: {version: 1, prices: none}}",
    "addons": "addons: {NAME: {version: 1, for: [PLAN], price: {…}}}",
    "trial": "trial: {family: NAME, days: 14}",
    "meters": "a list, - {slug: NAME, event_type: NAME, aggregation: count}",
    "defaults": "defaults: {plan: free}",
}
_SHAPE_ERRORS: Final = ("dict_type", "model_type", "model_attributes_type", "list_type", "tuple_type")
_INTERVALS: Final = f"; amounts stand under an interval: {', '.join(Interval)}"
_EMPTY: Final = "the file is empty: begin with `tidemark catalog example`"


class CatalogProblem(NamedTuple):
    """What is wrong with a catalog file or worth a warning, and where."""

    line: int
    field: str
    message: str


def read_catalog(
    content: bytes, known: Mapping[PlanId, Plan | AddOn]
) -> tuple[Catalog | None, tuple[CatalogProblem, ...]]:
    """The catalog of a file with all plans complete, and warnings; or None and what is wrong. Both by line.

    `known` are the versions that were applied before; `extends` may name one of them, or a plan of the file.
    """
    try:
        document = read_yaml(content)
    except Unreadable as error:
        return None, (CatalogProblem(error.line, _field(error.path), error.message),)
    if document.value is None:
        return None, (CatalogProblem(1, _field(()), _EMPTY),)
    try:
        written = Catalog.model_validate(document.value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        found = [
            (
                tuple(detail["loc"]) or _repeated(document.value),
                problem.message + (_shape(detail["loc"]) if detail["type"] in _SHAPE_ERRORS else _unknown(detail)),
            )
            for detail, problem in zip(details, problems(error, YAML), strict=True)
            if not _is_echo(detail, details)
        ]
        return None, _sorted(CatalogProblem(document.line(path), _field(path), message) for path, message in found)
    catalog, broken = _complete(written, known)
    broken += broken_rules(catalog)
    said = _sorted(
        CatalogProblem(document.line(path), _field(path), message) for path, message in broken or warnings_of(catalog)
    )
    return (None if broken else catalog), said


def _shape(path: Path) -> str:
    """How the innermost field of a path is written that has a form of its own."""
    shape = next((_SHAPES[part] for part in reversed(path) if isinstance(part, str) and part in _SHAPES), "")
    return f"; write {shape}" if shape else ""


def _unknown(detail: ErrorDetails) -> str:
    """Where amounts stand, for an unknown field of an add-on's price or of a component."""
    loc = detail["loc"]
    is_priced = loc[-2:-1] == ("price",) or loc[-3:-2] == ("prices",)
    return _INTERVALS if detail["type"] == "extra_forbidden" and is_priced else ""


def _is_echo(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether a list only seems too short, because what is wrong with its entries is found too."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(each["loc"]) > len(loc) and each["loc"][: len(loc)] == loc for each in details
    )


def _repeated(value: Any) -> Path:
    """The meter that has the slug or the event name of one before it. The meter set as a whole refuses it, so all other
    fields have their form; or the file is no map at all."""
    if not isinstance(value, dict):
        return ()
    seen: set[tuple[str, str]] = set()
    for part in ("meters", "retired"):
        for index, meter in enumerate(value.get(part, ())):
            for name in ("slug", "stripe_event_name") if part == "meters" else ("slug",):
                if (name, meter.get(name)) in seen:
                    return (part, index, name)
                if meter.get(name):
                    seen.add((name, meter[name]))
    return ()


def _field(path: Path) -> str:
    return ".".join(str(part) for part in path if part != "[key]") or "catalog"


def _sorted(found: Iterable[CatalogProblem]) -> tuple[CatalogProblem, ...]:
    return tuple(sorted(set(found)))


def _complete(written: Catalog, known: Mapping[PlanId, Plan | AddOn]) -> tuple[Catalog, list[tuple[Path, str]]]:
    """The catalog with what its plans inherit. A plan whose `extends` cannot be followed stays as it is."""
    broken: list[tuple[Path, str]] = []
    plans = {name: _whole(written, name, known, (), broken) for name in written.plans}
    return written.model_copy(update={"plans": plans}), broken


def _whole(
    written: Catalog,
    name: str,
    known: Mapping[PlanId, Plan | AddOn],
    heirs: tuple[str, ...],
    broken: list[tuple[Path, str]],
) -> Plan:
    plan = written.plans[name]
    if plan.extends is None:
        return plan
    base_name, _, version = plan.extends.partition("@")
    base_id = PlanId(base_name, int(version))
    of_file = written.plans.get(base_name)
    base: Plan | AddOn | None
    if of_file is not None and of_file.version == base_id.version:
        if base_name in (*heirs, name):
            broken.append((("plans", name, "extends"), f"{base_id} extends {name} in turn: one must stand alone"))
            return plan
        base = _whole(written, base_name, known, (*heirs, name), broken)
    else:
        base = known.get(base_id)
    if not isinstance(base, Plan):
        have = sorted(str(each) for each in known if each.name == base_name)
        have += [f"{base_name}@{of_file.version}"] if of_file and f"{base_name}@{of_file.version}" not in have else []
        names = f"there are {', '.join(have)}" if have else f"there is no plan {base_name}"
        broken.append((("plans", name, "extends"), f"there is no {base_id}, neither here nor applied: {names}"))
        return plan
    return _extended(base, plan)


def _extended(base: Plan, plan: Plan) -> Plan:
    """A plan with what it inherits: whole fields, and of maps the entries that it does not name."""
    own = plan.model_fields_set
    inherited = {field: getattr(base, field) for field in _INHERITED if field not in own}
    merged = {field: {**getattr(base, field), **getattr(plan, field)} for field in _MERGED}
    return plan.model_copy(update=inherited | merged)
