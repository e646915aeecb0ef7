"""The questions that only a sandbox can settle: one step each, which notes Stripe's answer.

`docs/stripe-simulator.md` has the questions and what the simulator assumes. Each step has objects of its own.
"""

from __future__ import annotations

from typing import Any, Final

from tests.sandbox.stage import Stage, StepEnds, is_error
from tests.sandbox.steps import (
    DAY_S,
    HOUR_S,
    METER_ERRORS,
    MINUTE_S,
    a_clock,
    a_customer,
    a_meter,
    a_price,
    advance,
    counted,
    start_s,
    usage,
)

SEND: Final = "v1.billing.meter_events.create"
SUMMARIES: Final = "v1.billing.meters.event_summaries.list"
LAG_EVENTS: Final = 200


async def rejections(stage: Stage, meter: str, number: int) -> list[dict[str, Any]]:
    """The error types of a meter's reports, once `number` events were reported or after the last look."""

    async def look() -> list[dict[str, Any]]:
        page = await stage.ask("v2.core.events.list", {"types": [METER_ERRORS], "object_id": meter})
        events = [await stage.ask("v2.core.events.retrieve", event["id"]) for event in page["data"]]
        return [kind for event in events for kind in (event.get("data") or {}).get("reason", {}).get("error_types", [])]

    return list(await stage.until(look, lambda kinds: sum(int(kind["error_count"]) for kind in kinds) >= number))


async def rejected_identifier(stage: Stage) -> None:
    """1 and 5: whether a rejected event's identifier is taken, and whose identifier a report shows."""
    meter, event_name = await a_meter(stage, "rejected")
    customer = await a_customer(stage)
    identifier, key = f"rejected_{stage.run}", f"key_{stage.run}"
    bad = usage(event_name, customer, "many", stage.now_s, identifier)
    if await stage.status("a value that is no number", SEND, bad, {"idempotency_key": key}) != 200:
        return
    kinds = await rejections(stage, meter, 1)
    stage.found("codes", [kind["code"] for kind in kinds])
    samples = [sample["request"]["identifier"] for kind in kinds for sample in kind["sample_errors"]]
    names = {identifier: "the event's identifier", key: "the Idempotency-Key"}
    stage.found("identifier of the sample", [names.get(sample, "another") for sample in samples])
    again = usage(event_name, customer, "1", stage.now_s, identifier)
    await stage.status("the identifier again", SEND, again)


async def refused_or_reported(stage: Stage) -> None:
    """2: which wrong events are refused at once, and which are reported later."""
    meter, event_name = await a_meter(stage, "refused")
    customer = await a_customer(stage)
    no_customer = {"event_name": event_name, "payload": {"value": "1"}, "timestamp": stage.now_s}
    events = {
        "36 days ago": usage(event_name, customer, "1", stage.now_s - 36 * DAY_S),
        "an hour ahead": usage(event_name, customer, "1", stage.now_s + HOUR_S),
        "unknown customer": usage(event_name, "cus_doesnotexist", "1", stage.now_s),
        "no customer": no_customer,
        "16 digits": usage(event_name, customer, "1234567.123456789", stage.now_s),
        "15 digits": usage(event_name, customer, "123456.123456789", stage.now_s),
    }
    accepted = 0
    for label, event in events.items():
        accepted += await stage.status(label, SEND, event) == 200
    # The event with 15 digits is right.
    kinds = await rejections(stage, meter, accepted - 1)
    stage.found("codes reported later", sorted(kind["code"] for kind in kinds))


async def future_summary(stage: Stage) -> None:
    """3: whether a summary may end in the future."""
    meter, _ = await a_meter(stage, "future")
    customer = await a_customer(stage)
    midnight_s = stage.now_s // DAY_S * DAY_S
    for label, end_s in (("tonight", midnight_s + DAY_S), ("in a month", midnight_s + 30 * DAY_S)):
        query = {"customer": customer, "start_time": midnight_s - DAY_S, "end_time": end_s}
        await stage.outcome(f"rows until {label}", SUMMARIES, meter, query)


async def negative_usage(stage: Stage) -> None:
    """4: a customer whose usage is negative."""
    meter, event_name = await a_meter(stage, "negative")
    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    price = await a_price(stage, "100", meter)
    body = {"customer": customer, "items": [{"price": price}]}
    subscription = await stage.ask("v1.subscriptions.create", body)
    at_s = start_s(stage) + DAY_S
    await stage.status("event", SEND, usage(event_name, customer, "-5", at_s))
    total = await stage.until(lambda: counted(stage, meter, customer, at_s, at_s + DAY_S), lambda it: it == -5)
    stage.found("sum", total)
    end_s = subscription["items"]["data"][0]["current_period_end"]
    await advance(stage, clock, end_s + 2 * HOUR_S)
    renewed = await stage.ask("v1.subscriptions.retrieve", subscription["id"])
    invoice = await stage.say("invoice", "v1.invoices.retrieve", renewed["latest_invoice"])
    stage.found("total", invoice["total"])


async def summary_lag(stage: Stage) -> None:
    """6: how long an event takes until a summary contains it. Printed, not compared."""
    meter, event_name = await a_meter(stage, "lag")
    customer = await a_customer(stage)
    start = stage.now_s // MINUTE_S * MINUTE_S - HOUR_S
    sent: list[float] = []
    for _ in range(LAG_EVENTS):
        await stage.ask(SEND, usage(event_name, customer, "1", start))
        sent.append(stage.stripe.now_s())
    lags: list[float] = []

    async def look() -> int:
        total = int(await counted(stage, meter, customer, start, start + MINUTE_S))
        lags.extend(stage.stripe.now_s() - at_s for at_s in sent[len(lags) : total])
        return total

    stage.found("sum", await stage.until(look, lambda total: total >= LAG_EVENTS))
    lags.sort()
    if lags:
        p50, p99 = (lags[len(lags) * part // 100] for part in (50, 99))
        stage.measured.append(f"summary_lag: p50 {p50:.1f} s, p99 {p99:.1f} s, {len(lags)} events")


async def finalization(stage: Stage) -> None:
    """7: the instant of the finalization, and the last usage that counts."""
    meter, event_name = await a_meter(stage, "final")
    clock = await a_clock(stage, start_s(stage) + 7)
    customer = await a_customer(stage, clock)
    price = await a_price(stage, "100", meter)
    subscription = await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
    end_s = subscription["items"]["data"][0]["current_period_end"]
    stage.found("seconds of the period's end", end_s % MINUTE_S)
    await advance(stage, clock, end_s + 1)
    for place, at_s in enumerate((end_s - MINUTE_S, end_s - 1, end_s, end_s + MINUTE_S)):
        # A different power of ten each, so that the quantity says which ones count.
        await stage.status(f"event {place}", SEND, usage(event_name, customer, str(10**place), at_s))
    hours = ((end_s - HOUR_S) // MINUTE_S * MINUTE_S, (end_s + HOUR_S) // MINUTE_S * MINUTE_S)
    await stage.until(lambda: counted(stage, meter, customer, *hours), lambda it: it == 1111)
    renewed = await stage.ask("v1.subscriptions.retrieve", subscription["id"])
    draft = await stage.ask("v1.invoices.retrieve", renewed["latest_invoice"])
    due_s = draft["automatically_finalizes_at"] or end_s + HOUR_S
    stage.found("finalizes after", due_s - end_s)
    for offset_s in (-1, 0, 60, 2 * HOUR_S):
        await advance(stage, clock, due_s + offset_s)
        invoice = await stage.ask("v1.invoices.retrieve", renewed["latest_invoice"])
        stage.found(f"status {offset_s} s after that", invoice["status"])
    lines = [line["quantity"] for line in invoice["lines"]["data"]]
    stage.found("usage on the invoice", lines)


async def rounding(stage: Stage) -> None:
    """8: ties of half a cent, and fractions in tiers."""
    customer = await a_customer(stage, await a_clock(stage, start_s(stage)))
    for cents, quantity in (("0.5", 1), ("0.5", 3), ("2.5", 1), ("12.345", 7)):
        await _preview(stage, customer, await a_price(stage, cents), quantity, f"{quantity} of {cents}")
    tiers = [{"up_to": up_to, "unit_amount_decimal": "0.5"} for up_to in (1, 2, "inf")]
    tiered: dict[str, Any] = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    await _preview(stage, customer, await a_price(stage, "", **tiered), 3, "three tiers")


async def _preview(stage: Stage, customer: str, price: str, quantity: int, label: str) -> None:
    body = {"customer": customer, "subscription_details": {"items": [{"price": price, "quantity": quantity}]}}
    preview = await stage.outcome(label, "v1.invoices.create_preview", body)
    if not is_error(preview):
        stage.found(f"lines of {label}", [[line["amount"], line["quantity"]] for line in preview["lines"]["data"]])


async def plan_changes(stage: Stage) -> None:
    """9: a metered price replaced in the hour of usage, and the anchor after free → paid."""
    meter, event_name = await a_meter(stage, "swap")
    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    cheap, dear = await a_price(stage, "10", meter), await a_price(stage, "30", meter)
    subscription = await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": cheap}]})
    swap_s = start_s(stage) + 5 * DAY_S + 30 * MINUTE_S
    await advance(stage, clock, swap_s)
    for value, at_s in (("1", swap_s - 10 * MINUTE_S), ("10", swap_s + 10 * MINUTE_S)):
        await stage.ask(SEND, usage(event_name, customer, value, at_s))
    hour = (swap_s - 30 * MINUTE_S, swap_s + 30 * MINUTE_S)
    await stage.until(lambda: counted(stage, meter, customer, *hour), lambda it: it == 11)
    item = subscription["items"]["data"][0]
    change = {"items": [{"id": item["id"], "price": dear}]}
    await stage.say("swapped", "v1.subscriptions.update", subscription["id"], change)
    await stage.say("pending items", "v1.invoice_items.list", {"customer": customer, "pending": True})
    await advance(stage, clock, item["current_period_end"] + 2 * HOUR_S)
    renewed = await stage.ask("v1.subscriptions.retrieve", subscription["id"])
    invoice = await stage.say("invoice", "v1.invoices.retrieve", renewed["latest_invoice"])
    stage.found("lines", sorted([line["amount"], line["quantity"]] for line in invoice["lines"]["data"]))

    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    free, paid = await a_price(stage, "0"), await a_price(stage, "1500")
    subscription = await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": free}]})
    await advance(stage, clock, swap_s)
    change = {"items": [{"id": subscription["items"]["data"][0]["id"], "price": paid}]}
    changed = await stage.say("free to paid", "v1.subscriptions.update", subscription["id"], change)
    stage.found("the period starts again", changed["items"]["data"][0]["current_period_start"] == swap_s)


async def usage_on_a_clock(stage: Stage) -> None:
    """10: whether a timestamp is compared with the customer's test clock or with the real one."""
    _, event_name = await a_meter(stage, "clock")
    clock = await a_clock(stage, stage.now_s)
    customer = await a_customer(stage, clock)
    price = await a_price(stage, "1500")
    await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
    await advance(stage, clock, stage.now_s + 40 * DAY_S)
    moments = {
        "ahead of the real clock": stage.now_s + 30 * DAY_S,
        "ahead of both": stage.now_s + 41 * DAY_S,
        "too old for the test clock": stage.now_s,
    }
    for label, at_s in moments.items():
        await stage.status(label, SEND, usage(event_name, customer, "1", at_s))


async def permissions(stage: Stage) -> None:
    """11: which of the product's calls the key may make. Only a restricted key (`rk_test_…`) answers the question."""
    meter, event_name = await a_meter(stage, "key")
    customer = await a_customer(stage)
    midnight_s = stage.now_s // DAY_S * DAY_S
    window = {"customer": customer, "start_time": midnight_s - DAY_S, "end_time": midnight_s}
    calls: tuple[tuple[Any, ...], ...] = (
        ("v1.accounts.retrieve_current",),
        ("v1.billing.meters.list",),
        (SEND, usage(event_name, customer, "1", stage.now_s)),
        (SUMMARIES, meter, window),
        ("v2.core.events.list", {"types": [METER_ERRORS]}),
    )
    for name, *arguments in calls:
        try:
            await stage.ask(name, *arguments)
        except StepEnds as end:
            stage.found(name, str(end))
        else:
            stage.found(name, "allowed")


async def lists_of_api_v2(stage: Stage) -> None:
    """12: the pages of a list of API v2, and whether an event's data may be null."""
    meter, event_name = await a_meter(stage, "pages")
    for value in ("one", "two"):
        # Two windows of validation, and so two reports.
        await stage.ask(SEND, usage(event_name, "cus_doesnotexist", value, stage.now_s))
        await rejections(stage, meter, 1 if value == "one" else 2)
    page = await stage.say("page", "v2.core.events.list", {"types": [METER_ERRORS], "object_id": meter, "limit": 1})
    stage.found("there is a next page", bool(page.get("next_page_url")))
    events = [await stage.ask("v2.core.events.retrieve", event["id"]) for event in page["data"]]
    stage.found("data", [sorted(event["data"]) if event.get("data") else None for event in events])


async def usage_in_a_trial(stage: Stage) -> None:
    """13: whether usage of a trial is billed when the trial ends."""
    meter, event_name = await a_meter(stage, "trial")
    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    items = [{"price": await a_price(stage, "100", meter)}]
    body = {"customer": customer, "items": items, "trial_period_days": 5}
    subscription = await stage.ask("v1.subscriptions.create", body)
    at_s = start_s(stage) + DAY_S
    await stage.ask(SEND, usage(event_name, customer, "3", at_s))
    await stage.until(lambda: counted(stage, meter, customer, at_s, at_s + DAY_S), lambda it: it == 3)
    await advance(stage, clock, start_s(stage) + 5 * DAY_S + 2 * HOUR_S)
    begun = await stage.ask("v1.subscriptions.retrieve", subscription["id"])
    invoice = await stage.say("invoice", "v1.invoices.retrieve", begun["latest_invoice"])
    stage.found("total", invoice["total"])


async def two_items_of_one_meter(stage: Stage) -> None:
    """14: whether two items of a subscription may have prices of one meter."""
    meter, _ = await a_meter(stage, "twice")
    customer = await a_customer(stage, await a_clock(stage, start_s(stage)))
    items = [{"price": await a_price(stage, cents, meter)} for cents in ("10", "20")]
    await stage.status("subscription", "v1.subscriptions.create", {"customer": customer, "items": items})


async def preview_with_usage(stage: Stage) -> None:
    """15: whether a preview rates usage for an item that the subscription does not have yet."""
    meter, event_name = await a_meter(stage, "preview")
    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    flat, metered = await a_price(stage, "1500"), await a_price(stage, "100", meter)
    subscription = await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": flat}]})
    await advance(stage, clock, start_s(stage) + 2 * DAY_S)
    at_s = start_s(stage) + DAY_S
    await stage.ask(SEND, usage(event_name, customer, "3", at_s))
    await stage.until(lambda: counted(stage, meter, customer, at_s, at_s + DAY_S), lambda it: it == 3)
    details: dict[str, Any] = {"items": [{"price": metered}]}
    body = {"subscription": subscription["id"], "subscription_details": details}
    preview = await stage.say("preview", "v1.invoices.create_preview", body)
    stage.found("lines", sorted([line["amount"], line["quantity"]] for line in preview["lines"]["data"]))
    details["start_date"] = start_s(stage)
    since = await stage.say("preview since", "v1.invoices.create_preview", body)
    stage.found("lines since", sorted([line["amount"], line["quantity"]] for line in since["lines"]["data"]))


async def seats_back(stage: Stage) -> None:
    """16: what is billed for seats that were given up without proration and are taken again."""
    clock = await a_clock(stage, start_s(stage))
    customer = await a_customer(stage, clock)
    items = [{"price": await a_price(stage, "3000"), "quantity": 5}]
    subscription = await stage.ask("v1.subscriptions.create", {"customer": customer, "items": items})
    item = subscription["items"]["data"][0]["id"]
    for day, quantity, behavior in ((10, 2, "none"), (20, 5, "always_invoice")):
        await advance(stage, clock, start_s(stage) + day * DAY_S)
        change = {"items": [{"id": item, "quantity": quantity}], "proration_behavior": behavior}
        changed = await stage.ask("v1.subscriptions.update", subscription["id"], change)
    invoice = await stage.say("invoice", "v1.invoices.retrieve", changed["latest_invoice"])
    stage.found("lines", [[line["amount"], line["quantity"]] for line in invoice["lines"]["data"]])


QUESTIONS: Final = {
    step.__name__: step
    for step in (
        rejected_identifier, refused_or_reported, future_summary, negative_usage, summary_lag, finalization, rounding,
        plan_changes, usage_on_a_clock, permissions, lists_of_api_v2, usage_in_a_trial,
        two_items_of_one_meter, preview_with_usage, seats_back,
    )
}  # fmt: skip
