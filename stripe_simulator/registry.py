"""The tables of all resources. A new resource is one more line in `_RESOURCES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stripe_simulator import invoicing, payments
from stripe_simulator.mode import Job, Route, Subscriber
from stripe_simulator.resources import (
    account,
    balance_transactions,
    checkout_sessions,
    core_events,
    coupons,
    credit_grants,
    credit_notes,
    customers,
    entitlements,
    events,
    invoiceitems,
    invoices,
    meter_event_adjustments,
    meter_event_stream,
    meter_event_summaries,
    meter_events,
    meters,
    payment_intents,
    payment_methods,
    portal_sessions,
    previews,
    prices,
    products,
    promotion_codes,
    refunds,
    setup_intents,
    subscription_cycle,
    subscription_items,
    subscription_schedules,
    subscriptions,
    tax,
    test_clocks,
    webhook_endpoints,
)

_RESOURCES: Final[tuple[Any, ...]] = (
    account,
    customers,
    balance_transactions,
    invoices,
    invoiceitems,
    previews,
    credit_notes,
    refunds,
    credit_grants,
    test_clocks,
    subscriptions,
    subscription_items,
    subscription_schedules,
    subscription_cycle,
    meters,
    meter_events,
    meter_event_summaries,
    meter_event_adjustments,
    meter_event_stream,
    events,
    core_events,
    products,
    prices,
    coupons,
    promotion_codes,
    payment_methods,
    payment_intents,
    setup_intents,
    tax,
    webhook_endpoints,
    entitlements,
    checkout_sessions,
    portal_sessions,
)

ROUTES: Final[Sequence[Route]] = [route for resource in _RESOURCES for route in resource.ROUTES]
JOBS: Final[Mapping[str, Job]] = {
    kind: job for resource in _RESOURCES for kind, job in getattr(resource, "JOBS", {}).items()
}
INDEXED: Final[Mapping[str, Sequence[str]]] = {
    kind: fields for resource in _RESOURCES for kind, fields in getattr(resource, "INDEXED", {}).items()
}
SUBSCRIBERS: Final[Sequence[Subscriber]] = [
    subscriber for resource in _RESOURCES for subscriber in getattr(resource, "SUBSCRIBERS", ())
]

payments.LISTENERS[:] = [invoicing.payment_settled]
invoicing.LISTENERS[:] = [subscription_cycle.follow]
