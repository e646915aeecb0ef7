"""A small catalog file that tests change."""

from __future__ import annotations

from typing import Final

from aggregators.catalog import read_catalog
from schemas.catalog import AddOn, Catalog, Plan, PlanId

SMALL: Final = """\
version: 1
meters:
  - {slug: tokens, event_type: llm, aggregation: sum, value_path: $.tokens, unit: tokens, stripe_event_name: tm_tokens}
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: tm_calls}
  - {slug: silent, event_type: silent, aggregation: count, unit: things}
currencies: {usd: 2, jpy: 0}
defaults: {plan: free}
features:
  seats: {type: seat, merge: sum}
  sso: {type: flag, stripe_feature: sso}
  tokens: {type: limit, merge: max, meter: tokens}
  reporting: {type: config}
plans:
  free:
    version: 1
    prices: none
    grants: {seats: 1, tokens: 1000}
  team:
    version: 1
    rank: 10
    prices:
      - {component: seat, quantity: seats, included: 2, month: {usd: "10.00", jpy: 1500}}
      - component: tokens
        meter: tokens
        unit: tokens
        tiers:
          - {up_to: included, price: {usd: 0, jpy: 0}}
          - {up_to: inf, price: {usd: "0.000004", jpy: "0.0006"}}
    included: {tokens: 5000}
    grants: {seats: quantity, sso: true, tokens: 9000, reporting: {days: 30}}
    trial: {family: paid, days: 14}
addons:
  boost: {version: 1, for: [team], price: {month: {usd: "5.00"}}, grants: {tokens: {add: 1000}}}
credit_pools:
  gifts: {covers: {calls: "1"}}
dunning: {fallback_plan: free}
"""

# What is sold beside plans: a pack of credits, coupons, and the customer portal.
OFFERS: Final = """\
coupons:
  launch: {version: 1, percent_off: "20", duration: repeating, duration_months: 3}
  sorry: {version: 1, name: "With our apologies", amount_off: {usd: "5.00"}, duration: once}
portal: {change_to: [solo], cancel: period_end}
"""
OFFERING: Final = (
    SMALL.replace(
        '  gifts: {covers: {calls: "1"}}\n',
        '  gifts: {covers: {calls: "1"}, packs: {p100: {credits: 100, usd: "25.00", jpy: 3800}}}\n',
    ).replace(
        "addons:\n",
        '  solo: {version: 1, rank: 5, prices: [{component: base, month: {usd: "4.00"}}], grants: {seats: 1}}\n'
        "addons:\n",
    )
    + OFFERS
)


def changed(old: str, new: str) -> str:
    """The small file with one part replaced, which must be in it."""
    assert old in SMALL
    return SMALL.replace(old, new, 1)


def catalog_of(text: str, known: dict[PlanId, Plan | AddOn] | None = None) -> Catalog:
    """A catalog that must be right."""
    catalog, problems = read_catalog(text.encode(), known or {})
    assert catalog is not None, problems
    return catalog
