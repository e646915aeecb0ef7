"""Every way in which a catalog file can be wrong is refused with its line, its field and the remedy."""

from __future__ import annotations

import itertools

import pytest

from aggregators.catalog import read_catalog
from aggregators.yaml_lines import BYTES_MAX
from pipeline.settings import Settings
from schemas.catalog import Catalog
from schemas.spelling import AMOUNT, CURRENCY, PLAN_NAME, SLUG, remedy_of
from tests.unit.catalog.files import SMALL, changed

SEAT = '- {component: seat, quantity: seats, included: 2, month: {usd: "10.00", jpy: 1500}}'
TOKENS = SMALL[SMALL.index("      - component: tokens") : SMALL.index("    included:")]
HERE = "# here"


def tokens(*lines: str) -> str:
    """The small file with another metered component."""
    return changed(TOKENS, "".join(f"{line}\n" for line in lines))


# (file, field, message); the problem is in the line that ends with HERE.
ROWS = {
    "two components of one price": (
        changed(SEAT, f'{SEAT}\n      - {{component: seat, month: {{usd: "1", jpy: 1}}}} {HERE}'),
        "plans.team.prices.1", "the plan has a component seat already",
    ),
    "a plan and an add-on of one name": (
        changed("  boost:", f"  team: {HERE}\n   "), "addons.team", "a plan is called team too",
    ),
    "extends itself": (
        changed("    rank: 10", f"    extends: team@1 {HERE}"), "plans.team.extends", "team@1 extends team in turn",
    ),
    "extends in a circle": (
        changed("    rank: 10", f"    extends: other@1 {HERE}").replace(
            "addons:", "  other: {version: 1, extends: team@1}\naddons:"
        ),
        "plans.team.extends", "other@1 extends team in turn",
    ),
    "extends an unknown version": (
        changed("    rank: 10", f"    extends: free@7 {HERE}"), "plans.team.extends", "there is no free@7",
    ),
    "extends an unknown plan": (
        changed("    rank: 10", f"    extends: gold@1 {HERE}"), "plans.team.extends", "there is no plan gold",
    ),
    "limit below what is included": (
        changed("tokens: 9000, ", f"\n             tokens: 4000, {HERE}\n             "),
        "plans.team.grants.tokens", "the limit 4000 is below the 5000 that the price includes",
    ),
    "seats below what is included": (
        changed("{seats: quantity, ", f"{{ {HERE}\n             seats: 1, {HERE}\n             ").replace(HERE, "", 1),
        "plans.team.grants.seats", "the limit 1 is below the 2",
    ),
    "unit of the meter": (
        changed("        unit: tokens", f"        unit: ktokens {HERE}"),
        "plans.team.prices.1.unit", "the price is for ktokens, and the meter counts tokens",
    ),
    "a decimal bound, as of a meter with a scale": (
        changed("{up_to: inf, ", f"{{up_to: 0.5, price: {{usd: 1, jpy: 1}}}} {HERE}\n          - {{up_to: inf, "),
        "plans.team.prices.1.tiers.1.up_to", "a tier ends at a whole number",
    ),
    "two usage intervals, of two components": (
        changed(
            TOKENS, TOKENS + f"      - {{component: c, meter: calls, unit: calls, year: {{usd: 1, jpy: 1}}}} {HERE}\n"
        ).replace("    rank: 10", "    usage_interval: month"),
        "plans.team.prices.2", "usage is billed by month and year",
    ),
    "two usage intervals, of one component": (
        tokens("      - component: c", "        meter: calls", "        unit: calls", "        month: {usd: 1, jpy: 1}",
               "        year: {usd: 9, jpy: 9}").replace("- component: c", f"- component: c {HERE}")
        .replace("    included: {tokens: 5000}\n", ""),
        "plans.team.prices.1", "usage is billed by month and year",
    ),
    "tiers and packages": (
        changed("        unit: tokens", f"        unit: tokens\n        package: 1000 {HERE}"),
        "plans.team.prices.1.package", "Stripe cannot bill packages and tiers",
    ),
    "packages and an included quantity": (
        changed("included: 2, month", f"included: 2, \n         package: 5, {HERE}\n         month"),
        "plans.team.prices.0.package", "Stripe cannot bill packages and tiers",
    ),
    "first tier is not what is included": (
        changed("{up_to: included, price: {usd: 0, jpy: 0}}", f"{{up_to: 4000, price: {{usd: 0, jpy: 0}}}} {HERE}"),
        "plans.team.prices.1.tiers.0", "the plan includes 5000: the first tier must end there and cost 0",
    ),
    "first tier is not free": (
        changed("{up_to: included, price: {usd: 0, jpy: 0}}", f"{{up_to: 5000, price: {{usd: 0, jpy: 1}}}} {HERE}"),
        "plans.team.prices.1.tiers.0", "must end there and cost 0",
    ),
    "a tier of what is included, and nothing is": (
        changed("    included: {tokens: 5000}\n", "").replace(
            "{usd: 0, jpy: 0}}", f"{{usd: 0, jpy: 0}}}} {HERE}"
        ),
        "plans.team.prices.1.tiers.0", "the plan includes nothing of the meter",
    ),
    "tiers that fall": (
        changed("        tiers:", f"        tiers: {HERE}").replace(
            "          - {up_to: inf", "          - {up_to: 9, price: {usd: 1, jpy: 1}}\n          - {up_to: inf"
        ),
        "plans.team.prices.1.tiers", "up_to must rise from tier to tier",
    ),
    "tiers of several currencies": (
        changed('{up_to: inf, price: {usd: "0.000004", jpy: "0.0006"}}', '{up_to: inf, price: {usd: "0.000004"}}')
        .replace("{usd: 0, jpy: 0}}", f"{{usd: 0, jpy: 0}}}} {HERE}").replace(", jpy: 1500", ""),
        "plans.team.prices.1.tiers.0", "all tiers have a price in the same currencies: usd",
    ),
    "a pool of ours and one of Stripe for one meter": (
        changed("dunning:", f"  bought: {{mode: stripe, unit: usd, covers: {{calls: 1}}}} {HERE}\ndunning:"),
        "credit_pools.bought.covers.calls", "gifts pays for calls in mode ledger",
    ),
    "a pool of Stripe in no currency": (
        changed("dunning:", f"  bought: {{mode: stripe, unit: calls, covers: {{tokens: 1}}}} {HERE}\ndunning:"),
        "credit_pools.bought.unit", "name one of currencies",
    ),
    "a pool of Stripe with a rate": (
        changed("dunning:", f'  bought: {{mode: stripe, unit: usd, covers: {{tokens: "2"}}}} {HERE}\ndunning:'),
        "credit_pools.bought.covers.tokens", "Stripe draws what the usage costs",
    ),
    "a pool of Stripe that blocks": (
        changed(
            "dunning:",
            f"  bought: {{mode: stripe, unit: usd, covers: {{tokens: 1}}, overdraft: block}} {HERE}\ndunning:",
        ),
        "credit_pools.bought.overdraft", "Stripe bills what its grants do not pay",
    ),
    "a pool of Stripe that is topped up": (
        changed(
            "dunning:",
            "  bought: {mode: stripe, unit: usd, covers: {tokens: 1}, packs: {p: {credits: 9, usd: 9}}, "
            f"top_up: {{below: 1, pack: p, month_max: 1}}}} {HERE}\ndunning:",
        ),
        "credit_pools.bought.top_up", "too late",
    ),
    "a pack of another currency than its pool of Stripe": (
        changed(
            "dunning:",
            "  bought: {mode: stripe, unit: usd, covers: {tokens: 1}, packs: {p: {credits: 9, jpy: 9}}} "
            f"{HERE}\ndunning:",
        ),
        "credit_pools.bought.packs.p.jpy", "pay no invoice in jpy",
    ),
    "credits of a plan that roll over at Stripe": (
        changed(
            "    trial: {family",
            f"    credits: [{{pool: bought, amount: 1, rollover_max: 1}}] {HERE}\n    trial: {{family",
        )
        .replace("dunning:", "  bought: {mode: stripe, unit: usd, covers: {tokens: 1}}\ndunning:"),
        "plans.team.credits.0.rollover_max", "end with their period",
    ),
    "pause at the end of a trial of usage": (
        changed("days: 14}", f"days: 14, \n            ends: {{no_card: pause}}}} {HERE}"),
        "plans.team.trial.ends", "Stripe cannot pause",
    ),
    "pause at the end of a trial with a card": (
        changed("days: 14}", f"days: 14, \n            ends: {{card: pause}}}} {HERE}"),
        "plans.team.trial.ends.card", "only without a card",
    ),
    "an urgent mail after the last one": (
        changed("dunning: {fallback_plan: free}", f"dunning: {{urgent_days: 22}} {HERE}"), "dunning.urgent_days",
        "comes after final_days",
    ),
    "unknown feature": (
        changed("{seats: 1, tokens: 1000}", f"{{gold: true}} {HERE}"), "plans.free.grants.gold",
        "there is no feature gold",
    ),
    "unknown feature of a trial": (
        changed("days: 14}", f"days: 14, grants: {{gold: 1}}}} {HERE}"), "plans.team.trial.grants.gold",
        "there is no feature gold",
    ),
    "unknown feature of a price": (
        changed("quantity: seats, included: 2,", f"quantity: sso, {HERE}\n        ").replace("seats: quantity, ", ""),
        "plans.team.prices.0.quantity", "there is no feature sso of type seat",
    ),
    "currency without an exponent": (
        changed('price: {month: {usd: "5.00"}}', f'price: {{month: {{eur: "5.00"}}}} {HERE}\n         '),
        "addons.boost.price.month.eur", "currencies does not have eur",
    ),
    "exponent that Stripe does not have": (
        changed("currencies: {usd: 2,", f"currencies: {{ {HERE}\n  usd: 3, {HERE}\n ").replace(HERE, "", 1),
        "currencies.usd", "Stripe counts usd with 2 decimals, not 3",
    ),
    "invented currency": (
        changed("currencies: {usd: 2,", f"currencies: {{ {HERE}\n  zzz: 2, {HERE}\n  usd: 2,").replace(HERE, "", 1),
        "currencies.zzz", "Stripe has no currency zzz: take the three letters of ISO 4217, such as usd",
    ),
    "mistyped currency": (
        changed("currencies: {usd: 2,", f"currencies: {{ {HERE}\n  ued: 2, {HERE}\n  usd: 2,").replace(HERE, "", 1),
        "currencies.ued", "Stripe has no currency ued: did you mean usd",
    ),
    "key that comes twice": (
        changed("  team:\n", f"  free: {HERE}\n"), "plans.free", "the key comes twice, first in line 14",
    ),
    "huge number": (
        changed("    rank: 10", f"    rank: {'9' * 5000} {HERE}"), "plans.team.rank", "more than 18 digits",
    ),
    "large number": (
        changed("    rank: 10", f"    rank: 1000000000 {HERE}"), "plans.team.rank", "must be at most 1000000",
    ),
    "huge amount": (
        changed(SEAT, SEAT.replace('"10.00"', '"1000000"') + HERE).replace(f"}}}}{HERE}", f"}}}} {HERE}"),
        "plans.team.prices.0.month.usd", "more than Stripe's highest amount",
    ),
    "too many decimals": (
        changed('usd: "0.000004"', 'usd: "0.000000000000004"').replace("0006\"}}", f'0006"}}}} {HERE}'),
        "plans.team.prices.1.tiers.1.price.usd", "more decimals than the 14 that Stripe takes",
    ),
    "negative amount": (
        changed(SEAT, SEAT.replace('"10.00"', '"-10.00"') + f" {HERE}"), "plans.team.prices.0.month.usd",
        '"-10.00": an amount is 0 or more',
    ),
    "anchor": (changed("    rank: 10", f"    rank: &x 10 {HERE}"), "plans.team.rank", "anchors and aliases"),
    "tag": (
        changed("    rank: 10", f"    rank: !!python/object/apply:os.system [ls] {HERE}"), "plans.team.rank", "the tag",
    ),
    "no such field": (changed("    rank: 10", f"    rnak: 10 {HERE}"), "plans.team.rnak", "no such field"),
    "metered price of a meter that Stripe does not know": (
        tokens("      - component: silent", f"        meter: silent {HERE}", "        unit: things",
               "        month: {usd: 1, jpy: 1}").replace("    included: {tokens: 5000}\n", ""),
        "plans.team.prices.1.meter", "silent is not reported to Stripe",
    ),
    "unknown meter of a price": (
        changed("        meter: tokens", f"        meter: gold {HERE}").replace("    included: {tokens: 5000}\n", "")
        .replace("{up_to: included, ", "{up_to: 5000, "),
        "plans.team.prices.1.meter", "there is no meter gold",
    ),
    "unknown meter of a feature": (
        changed("meter: tokens}", f"meter: gold}} {HERE}"), "features.tokens.meter", "there is no meter gold",
    ),
    "limit without a meter": (
        changed("merge: max, meter: tokens}", f"merge: max}} {HERE}"), "features.tokens", "a limit needs the meter",
    ),
    "seats without a merge": (
        changed("{type: seat, merge: sum}", f"{{type: seat}} {HERE}"), "features.seats",
        "say what two subscriptions give together; a seat takes max or sum",
    ),
    "grant of another type": (
        changed("{seats: 1, tokens: 1000}", f"{{seats: true}} {HERE}"), "plans.free.grants.seats",
        "seats is a seat: grant a number, unlimited, quantity",
    ),
    "quantity that nobody pays": (
        changed("{seats: 1, tokens: 1000}", f"{{seats: quantity}} {HERE}"), "plans.free.grants.seats",
        "no component of the plan has `quantity: seats`",
    ),
    "default plan with a price": (
        changed("defaults: {plan: free}", f"defaults: {{plan: team}} {HERE}"), "defaults.plan", "team has prices",
    ),
    "unknown default plan": (
        changed("defaults: {plan: free}", f"defaults: {{plan: gold}} {HERE}"), "defaults.plan", "there is no plan gold",
    ),
    "components that cannot be bought together": (
        changed(SEAT, f'{SEAT}\n      - {{component: base, year: {{usd: "1", jpy: 1}}}} {HERE}'),
        "plans.team.prices.1",
        "nobody could buy the plan so; add `month:` to base, or remove it from seat; add `year:` to seat, or",
    ),
    "a component without a currency of the others": (
        changed(SEAT, f'{SEAT}\n      - {{component: base, month: {{usd: "1"}}}} {HERE}'),
        "plans.team.prices.1", "nobody could buy the plan so; add `jpy:` to `month:` of base, or remove it from seat",
    ),
    "a limit of what exists at once": (
        changed("features:\n", f"features:\n  projects: {{type: limit, merge: sum}} {HERE}\n"), "features.projects",
        "a number of things that exist at once, such as projects, is `type: seat`",
    ),
    "an interval of an add-on by another name": (
        changed('month: {usd: "5.00"}}', f'monthly: {{usd: "5.00"}}}} {HERE}\n         '), "addons.boost.price.monthly",
        "no such field: remove it or correct its name; amounts stand under an interval: day, week, month, year",
    ),
    "an interval of a component by another name": (
        changed(SEAT, f"- {{component: seat, monthly: {{usd: 1}}}} {HERE}"), "plans.team.prices.0.monthly",
        "amounts stand under an interval: day, week, month, year",
    ),
    "an add-on for a version of a plan": (
        changed("for: [team]", f"for: [team@1] {HERE}\n         "), "addons.boost.for.0",
        '"team@1": name it without a version here: team',
    ),
    "usage without a price in a currency": (
        changed(TOKENS, f"      - {{component: c, meter: calls, unit: calls, month: {{usd: 1}}}} {HERE}\n")
        .replace("    included: {tokens: 5000}\n", ""),
        "plans.team.prices.1", "no price in jpy, which others have",
    ),
    "add-on for an unknown plan": (
        changed("for: [team]", f"for: [gold] {HERE}\n         "), "addons.boost.for.0", "there is no plan gold",
    ),
    "two meters of one slug": (
        changed("  - {slug: silent, ", f"  - {{ {HERE}\n     slug: calls, {HERE}\n     ").replace(HERE, "", 1),
        "meters.2.slug", "meter slug used twice: calls",
    ),
    "two meters that report to one meter at Stripe": (
        changed(
            "unit: things}", f"unit: things, \n     stripe_event_name: tm_calls}} {HERE}"
        ),
        "meters.2.stripe_event_name", "stripe_event_name used by two meters: tm_calls",
    ),
    "a circle of three plans": (
        changed("    rank: 10", f"    extends: one@1 {HERE}").replace(
            "addons:", "  one: {version: 1, extends: two@1}\n  two: {version: 1, extends: team@1}\naddons:"
        ),
        "plans.team.extends", "one@1 extends team in turn",
    ),
    "a tier below zero": (
        changed("{up_to: included, ", f"{{up_to: -1, {HERE}\n             "),
        "plans.team.prices.1.tiers.0.up_to", "a tier ends at a whole number",
    ),
    "included usage below zero": (
        changed("included: {tokens: 5000}", f"included: {{tokens: -5000}} {HERE}"),
        "plans.team.included.tokens", "must be at least 1",
    ),
    "a grant below zero": (
        changed("{seats: 1, tokens: 1000}", f"{{seats: -1}} {HERE}"), "plans.free.grants.seats", "a grant is a number",
    ),
    "a currency twice in one price": (
        changed(SEAT, SEAT.replace("jpy: 1500", 'usd: "11.00"') + f" {HERE}"),
        "plans.team.prices.0.month.usd", "the key comes twice, first in line 22",
    ),
    "a currency in capitals": (
        changed(SEAT, SEAT.replace("usd:", "USD:") + f" {HERE}"),
        "plans.team.prices.0.month.USD", '"USD": a currency is three small letters, such as usd',
    ),
    "a merge key of YAML": (
        changed("    rank: 10", f"    <<: {{rank: 10}} {HERE}"), "plans.team.<<", "no such field",
    ),
    "included usage that no component bills": (
        changed("    included: {tokens: 5000}", f"    included: {{tokens: 5000, calls: 5}} {HERE}"),
        "plans.team.included.calls", "there is no metered component of the plan for calls",
    ),
    "a decimal comma": (
        changed(SEAT, SEAT.replace('"10.00"', '"35,00"') + f" {HERE}"),
        "plans.team.prices.0.month.usd", '"35,00": write a point, not a comma: 35.00',
    ),
    "marks between digits": (
        changed(SEAT, SEAT.replace('"10.00"', '"1,250.00"') + f" {HERE}"),
        "plans.team.prices.0.month.usd", '"1,250.00": write an amount without marks between its digits: 1250.00',
    ),
    "an amount with its currency": (
        changed(SEAT, SEAT.replace('"10.00"', '"$10"') + f" {HERE}"),
        "plans.team.prices.0.month.usd", '"$10": an amount is digits with a point in major units, such as "35.00"',
    ),
    "an amount without its first digit": (
        changed(SEAT, SEAT.replace('"10.00"', ".5") + f" {HERE}"),
        "plans.team.prices.0.month.usd", '".5": write a digit before the point: 0.5',
    ),
    "a float of YAML": (
        changed(SEAT, SEAT.replace('"10.00"', "1e1") + f" {HERE}"),
        "plans.team.prices.0.month.usd", '"1e1": an amount is digits with a point',
    ),
    "a negative whole number": (
        changed(SEAT, SEAT.replace('"10.00"', "-5") + f" {HERE}"),
        "plans.team.prices.0.month.usd", '"-5": an amount is 0 or more',
    ),
    "an amount with zeros before it": (
        changed(SEAT, SEAT.replace('"10.00"', '"007"') + f" {HERE}"),
        "plans.team.prices.0.month.usd", "begins with 0 only before a point",
    ),
    "extends without a version": (
        changed("    rank: 10", f"    extends: free {HERE}"),
        "plans.team.extends", '"free": name the plan and its version, such as free@1',
    ),
    "a plan in capitals": (
        changed("  team:\n", f"  Team Plus: {HERE}\n"),
        "plans.Team Plus", "begins with a letter and has up to 63 characters, such as team_plus",
    ),
    "a feature with a hyphen": (
        changed("  reporting: {type", f"  night-reports: {HERE}\n    {{type"),
        "features.night-reports", "such as night_reports",
    ),
    "a currency in capitals among the currencies": (
        changed("jpy: 0}", f"EUR: 2}} {HERE}"), "currencies.EUR",
        '"EUR": a currency is three small letters, such as eur',
    ),
    "a tax code": (
        changed("defaults: {plan: free}", f"defaults: {{plan: free, tax_code: saas}} {HERE}"),
        "defaults.tax_code", '"saas": a tax code of Stripe is txcd_ and eight digits',
    ),
    "a path": (
        changed("value_path: $.tokens,", f"value_path: tokens, {HERE}\n    "), "meters.0.value_path",
        '"tokens": a path begins with $ and names fields of the event\'s data, such as $.tokens',
    ),
    "a spend cap without a meter": (
        changed("    rank: 10", f'    spend_cap: "50.00" {HERE}'), "plans.team.spend_cap",
        'a map of fields is needed, not a text; write spend_cap: {METER: {usd: "50.00"}}',
    ),
    "a spend cap by currency alone": (
        changed("    rank: 10", f'    spend_cap: {{usd: "50.00"}} {HERE}'), "plans.team.spend_cap.usd",
        'a map of fields is needed, not a text; write spend_cap: {METER: {usd: "50.00"}}',
    ),
    "an amount without a currency": (
        changed(SEAT, f"- {{component: seat, month: 35}} {HERE}"), "plans.team.prices.0.month",
        'a map of fields is needed, not a number; write month: {usd: "50.00"}',
    ),
    "prices that are a map": (
        changed("for: [team]", f"for: team {HERE}\n         "), "addons.boost.for",
        "a list is needed, not a text; write for: [PLAN]",
    ),
    "a list of currencies": (
        changed("currencies: {usd: 2, jpy: 0}", f"currencies: [usd] {HERE}"), "currencies",
        "a map of fields is needed, not a list; write currencies: {usd: 2}",
    ),
    "a plan and an add-on that customers see by one name": (
        changed("    rank: 10", "    name: Team").replace(
            "boost: {version: 1,", f"boost: {{version: 1, name: team, {HERE}\n   "
        ),
        "addons.boost.name", "team is shown to customers by this name too",
    ),
    "two plans that customers see by one name": (
        changed("    rank: 10", f"    name: Free of  charge {HERE}").replace(
            "    prices: none", "    name: free of charge\n    prices: none"
        ),
        "plans.team.name", "free is shown to customers by this name too: give each a name of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "field", "message"), ROWS.values(), ids=ROWS.keys())
def test_what_is_wrong_is_named_with_its_line(text: str, field: str, message: str) -> None:
    line = next(number for number, each in enumerate(text.splitlines(), 1) if each.endswith(HERE))

    catalog, problems = read_catalog(text.encode(), {})

    assert None is catalog
    found = [problem for problem in problems if problem.field == field]
    assert [(line, True)] == [(problem.line, message in problem.message) for problem in found], problems


BYTES = {
    "nothing": (b"", 1, "catalog", "the file is empty: begin with `tidemark catalog example`"),
    "a comment alone": (b"# prices\n", 1, "catalog", "the file is empty"),
    "a list": (b"- version: 1\n", 1, "catalog", "a map of fields is needed, not a list"),
    "not UTF-8": (SMALL.replace("team", "t\xe9am").encode("latin-1"), 18, "catalog", "not UTF-8"),
    "ten megabytes": (b"a: " + b"x" * 10_000_000, 1, "catalog", f"more than {BYTES_MAX} bytes"),
    "deep": (b"[" * 100_000, 1, ".".join("0" * 4), "more than 24 levels"),
    "a bomb of aliases": (
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]).encode(),
        1, "a0", "anchors and aliases are not read",
    ),
    "not YAML": (b"version: 1\nmeters: [\n", 3, "catalog", "not YAML"),
    "a control character": (b"version: \x07", 1, "catalog", "not YAML"),
    "two documents": (b"version: 1\n---\nversion: 2\n", 2, "catalog", "a second document"),
    "a key that is a list": (b"version: 1\n? [a]\n: 2\n", 2, "catalog", "a key must be a plain text"),
}  # fmt: skip


@pytest.mark.parametrize(
    "amount",
    [
        "1e9",
        ".nan",
        ".inf",
        '"1,000"',
        '"+1"',
        '" 1"',
        '"1\\n"',
        '"\u0663"',
        '""',
        "true",
        "null",
        "[1]",
        f'"0.{"1" * 500}"',
    ],
)
def test_an_amount_that_is_not_plain_decimal_text_is_refused_with_its_line(amount: str) -> None:
    """No amount becomes another one on its way through YAML."""
    catalog, problems = read_catalog(changed('usd: "10.00"', f"usd: {amount}").encode(), {})

    assert catalog is None
    assert [(22, "plans.team.prices.0.month.usd")] == [problem[:2] for problem in problems if "usd" in problem.field]


@pytest.mark.parametrize(("content", "line", "field", "message"), BYTES.values(), ids=BYTES.keys())
def test_hostile_bytes_are_refused(content: bytes, line: int, field: str, message: str) -> None:
    catalog, (problem, *_) = read_catalog(content, {})

    assert (None, line, field) == (catalog, *problem[:2])
    assert message in problem.message


def test_every_spelling_of_the_file_and_of_the_settings_has_a_remedy_in_words() -> None:
    """A regular expression is no answer to a person who wrote a price."""
    found: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            found.update(each for each in [value.get("pattern")] if isinstance(each, str))
            found.update(each for each in value.get("patternProperties", ()) if isinstance(each, str))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(Catalog.model_json_schema())
    walk(Settings.model_json_schema())

    assert {SLUG, CURRENCY, AMOUNT, PLAN_NAME} <= found
    assert set() == {pattern for pattern in found if not remedy_of(pattern, "?")}


def test_all_problems_of_a_file_are_found_at_once() -> None:
    """Who corrects a file line by line would need a run for each."""
    text = changed("{seats: 1, tokens: 1000}", "{gold: 1}").replace("for: [team]", "for: [silver]")

    _, problems = read_catalog(text.encode(), {})

    assert ["plans.free.grants.gold", "addons.boost.for.0"] == [problem.field for problem in problems]


def test_a_list_with_a_wrong_entry_is_not_too_short_as_well() -> None:
    _, problems = read_catalog(changed("for: [team]", "for: [team@1]").encode(), {})
    _, empty = read_catalog(changed("for: [team]", "for: []").encode(), {})

    assert ["addons.boost.for.0"] == [problem.field for problem in problems]
    assert [("addons.boost.for", "must have 1 or more entries")] == [problem[1:] for problem in empty]


def test_lines_rise() -> None:
    text = changed("version: 1\n", "version: x\nfoo: 1\n").replace("rank: 10", "rank: x")

    _, problems = read_catalog(text.encode(), {})

    assert 3 == len(problems)
    assert all(one.line <= two.line for one, two in itertools.pairwise(problems))
