"""An account's bindings from what Stripe holds: who pays from now on, ahead of time where the future is known.

The rules, by what the mirror says of the customer that the account is linked to at an instant:

- No row of the customer: nothing, and the payer from before pays on. The customer's objects were not read yet.
- No subscription that bills: `free`. So usage before the first subscription is nobody's alarm.
- `active`, `past_due`: `mapped`, with the subscription's anchor and the interval of its metered items.
- A trial: `free` until its end, and `mapped` from then on, also if Stripe's word of the end comes late.
- `cancel_at`, and the end of a schedule that cancels: `free` from that instant on.
- `paused`, `canceled`, `incomplete`, `incomplete_expired`: `free`, because Stripe bills no usage.
- `unpaid`: `free`. Stripe makes drafts that it does not collect, and the payer may resume only after an agreement. The
  usage of that time is given away rather than added to an invoice that nobody expects.
- A paused *collection* changes nothing: Stripe goes on making invoices.
- A deleted customer: `free`.
- A schedule's later phases: their interval and anchor from their start on, if their prices are known. An unknown price
  says nothing until its phase begins and its items are read.
- No link at that instant, after a link ended: `unmapped`. The reports are held, and an alarm says so.

Of several subscriptions that bill, one with metered items wins over one without, and then the older one.
`overlaps` finds those that cannot both be right. Instants of effect are cut down to the minute like anchors, and are
never before the link.

The first binding of an account is the one in force now. If it named who paid before a subscription that has begun, the
fold would leave the usage since then with that payer (`docs/adr/0012-who-pays.md`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from schemas.clock import MINUTE_MS
from schemas.periods import Billing, Binding, Interval
from schemas.side_tables import Link, Overlap, Row

# The statuses in which Stripe bills usage.
BILLED: Final = frozenset(["active", "past_due", "trialing"])
_SCHEDULED: Final = frozenset(["active", "not_started"])
_ORDER: Final = tuple(Interval)


class Rule(NamedTuple):
    """What periods are counted by."""

    anchor_ms: int = 0
    interval: Interval = Interval.MONTH
    interval_count: int = 1


class Payer(NamedTuple):
    """Who pays from `from_ms` on, and the periods of that payer. The rule of usage that nobody pays for is any."""

    from_ms: int
    billing: Billing
    customer: str = ""
    rule: Rule = Rule()

    @property
    def terms(self) -> tuple[object, ...]:
        """What must differ for a binding to be worth sending."""
        if self.billing is not Billing.MAPPED:
            return (self.billing,)
        return self.billing, self.customer, _minute(self.rule.anchor_ms), self.rule.interval, self.rule.interval_count


class _Price(NamedTuple):
    interval: Interval
    interval_count: int
    meter: str | None


class _Terms(NamedTuple):
    """What a subscription bills from `begins_ms` on; a trial is free until `free_until_ms`."""

    begins_ms: int
    free_until_ms: int
    rule: Rule
    meters: frozenset[str]


class _Billed(NamedTuple):
    """A subscription that bills in `[starts_ms, ends_ms)` by one rule."""

    starts_ms: int
    ends_ms: int | None
    rule: Rule
    subscription: str
    since_ms: int
    meters: frozenset[str]

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The lowest rank pays."""
        return not self.meters, self.since_ms, self.subscription


def timeline(
    links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], sent: Sequence[Binding], now_ms: int
) -> list[Binding]:
    """The bindings to send besides those planned before (`schemas.side_tables.Timeline`)."""
    wanted, planned = _wanted(links, mirror, now_ms), _planned(sent)
    instants = sorted({now_ms, *(payer.from_ms for payer in (*wanted, *planned) if payer.from_ms > now_ms)})
    for instant_ms in instants:
        want, plan = _at(wanted, instant_ms), _at(planned, instant_ms)
        if want is not None and (plan is None or want.terms != plan.terms):
            break
    else:
        return []
    begins_ms = instant_ms
    if instant_ms == now_ms:
        # If nothing says when the change was, it is now.
        is_known = plan is None or want.from_ms > plan.from_ms
        begins_ms = want.from_ms if is_known else _minute(now_ms)
    later = [payer for payer in wanted if payer.from_ms > instant_ms]
    return _bindings([want._replace(from_ms=begins_ms), *later], plan.rule if plan else Rule())


def overlaps(mirror: Mapping[str, Sequence[Row]], now_ms: int) -> list[Overlap]:
    """The pairs of subscriptions that bill one meter twice, or that bill meters in different periods, from now on."""
    found = []
    for customer in sorted({str(row["customer_id"]) for row in mirror.get("subscriptions", ())}):
        billed = sorted(_billed(customer, mirror, now_ms), key=lambda span: span.rank)
        metered = [span for span in billed if span.meters and (span.ends_ms is None or span.ends_ms > now_ms)]
        for number, first in enumerate(metered):
            for second in metered[number + 1 :]:
                if first.subscription == second.subscription or not _meet(first, second):
                    continue
                if shared := first.meters & second.meters:
                    reason = f"both bill the meter {', '.join(sorted(shared))}: {first.subscription} is followed"
                elif first.rule != second.rule:
                    reason = f"they bill meters in different periods: {first.subscription} is followed"
                else:
                    continue
                found.append(Overlap(customer, first.subscription, second.subscription, reason))
    return list(dict.fromkeys(found))


def _meet(first: _Billed, second: _Billed) -> bool:
    return (first.ends_ms is None or second.starts_ms < first.ends_ms) and (
        second.ends_ms is None or first.starts_ms < second.ends_ms
    )


def _minute(instant_ms: int) -> int:
    return instant_ms // MINUTE_MS * MINUTE_MS


def _at(payers: Sequence[Payer], instant_ms: int) -> Payer | None:
    found = [payer for payer in payers if payer.from_ms <= instant_ms]
    return found[-1] if found else None


def _planned(sent: Sequence[Binding]) -> list[Payer]:
    """Who pays by the bindings planned so far: each one replaces those that would take effect later, as in the fold."""
    payers: list[Payer] = []
    for binding in sent:
        rule = Rule(binding.anchor_ms, binding.interval, binding.interval_count)
        payers = [payer for payer in payers if payer.from_ms < binding.effective_from_ms]
        payers.append(Payer(binding.effective_from_ms, binding.billing, binding.stripe_customer, rule))
    return payers


def _bindings(payers: Sequence[Payer], rule: Rule) -> list[Binding]:
    """The bindings of the payers. Usage that nobody pays for has the periods of the next payer, else those before."""
    found = []
    for number, payer in enumerate(payers):
        if payer.billing is Billing.MAPPED:
            rule = payer.rule
        else:
            rule = next((after.rule for after in payers[number:] if after.billing is Billing.MAPPED), rule)
        found.append(
            Binding(
                effective_from_ms=payer.from_ms,
                anchor_ms=rule.anchor_ms,
                interval=rule.interval,
                interval_count=rule.interval_count,
                billing=payer.billing,
                stripe_customer=payer.customer,
            )
        )
    return found


def _wanted(links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], now_ms: int) -> list[Payer]:
    """Who pays from the first link on, for ever; neighbours differ."""
    payers: list[Payer] = []
    known = {row["id"] for row in mirror.get("stripe_customers", ())}
    ordered = sorted(links, key=lambda link: link.starts_ms)
    for number, link in enumerate(ordered):
        starts_ms = -(-link.starts_ms // MINUTE_MS) * MINUTE_MS
        ends = [_minute(link.ends_ms)] if link.ends_ms is not None else []
        ends += [-(-later.starts_ms // MINUTE_MS) * MINUTE_MS for later in ordered[number + 1 :]]
        ends_ms = min(ends, default=None)
        if ends_ms is not None and ends_ms <= starts_ms:
            continue
        if not link.customer:
            payers.append(Payer(starts_ms, Billing.UNMAPPED))
            continue
        if link.customer not in known:
            continue
        own = _of_customer(link.customer, mirror, now_ms)
        before = _at(own, starts_ms) or Payer(starts_ms, Billing.FREE)
        payers.append(before._replace(from_ms=starts_ms))
        payers += [payer for payer in own if starts_ms < payer.from_ms and (ends_ms is None or payer.from_ms < ends_ms)]
        if link.ends_ms is not None and all(later.starts_ms > link.ends_ms for later in ordered[number + 1 :]):
            payers.append(Payer(_minute(link.ends_ms), Billing.UNMAPPED))
    return _merged(payers)


def _merged(payers: Iterable[Payer]) -> list[Payer]:
    """The payers without those that change nothing. Of two at one instant, the later one counts."""
    by_instant = {payer.from_ms: payer for payer in payers}
    merged: list[Payer] = []
    for payer in sorted(by_instant.values()):
        if not merged or merged[-1].terms != payer.terms:
            merged.append(payer)
    return merged


def _of_customer(customer: str, mirror: Mapping[str, Sequence[Row]], now_ms: int) -> list[Payer]:
    """Who pays for the usage of a customer's account by what the customer has subscribed to."""
    billed = _billed(customer, mirror, now_ms)
    edges = sorted({edge for span in billed for edge in (span.starts_ms, span.ends_ms) if edge is not None})
    payers = []
    for edge_ms in edges:
        live = [
            span for span in billed if span.starts_ms <= edge_ms and (span.ends_ms is None or edge_ms < span.ends_ms)
        ]
        if live:
            rule = min(live, key=lambda span: span.rank).rule
            payers.append(Payer(_minute(edge_ms), Billing.MAPPED, customer, rule))
        else:
            payers.append(Payer(_minute(edge_ms), Billing.FREE))
    return _merged(payers)


def _billed(customer: str, mirror: Mapping[str, Sequence[Row]], now_ms: int) -> list[_Billed]:
    """The spans in which Stripe bills a customer's subscriptions."""
    if any(row["id"] == customer and row["deleted"] for row in mirror.get("stripe_customers", ())):
        return []
    items: dict[str, list[Row]] = {}
    for row in mirror.get("subscription_items", ()):
        items.setdefault(str(row["subscription_id"]), []).append(row)
    prices = {str(row["price_id"]): _price(row) for rows in items.values() for row in rows}
    schedules = [
        row
        for row in mirror.get("subscription_schedules", ())
        if row["customer_id"] == customer and row["status"] in _SCHEDULED and not row["deleted"]
    ]
    spans: list[_Billed] = []
    for row in mirror.get("subscriptions", ()):
        if row["customer_id"] == customer and not row["deleted"]:
            schedule = next((it for it in schedules if it["subscription_id"] == row["id"]), None)
            spans += _of_subscription(row, items.get(str(row["id"]), []), schedule, prices, now_ms)
    for schedule in schedules:
        if schedule["subscription_id"] is None:
            spans += _of_future(schedule, prices)
    return [span for span in spans if span.ends_ms is None or span.starts_ms < span.ends_ms]


def _of_subscription(
    row: Row, items: Sequence[Row], schedule: Row | None, prices: Mapping[str, _Price], now_ms: int
) -> list[_Billed]:
    """The spans of one subscription: one, and one for each phase of its schedule that the row does not show yet."""
    is_over = row["status"] == "canceled" and row["ended_ms"] is not None
    if row["status"] not in BILLED and not is_over:
        return []
    since_ms, own = _int(row["start_ms"]), [_price(item) for item in items]
    rule = Rule(_int(row["anchor_ms"]), *_interval_of(own))
    terms = [_Terms(since_ms, max(since_ms, _int(row["trial_end_ms"])), rule, _meters_of(own))]
    ends_ms = _maybe_ms(row, "ended_ms" if is_over else "cancel_at_ms")
    if schedule is not None and not is_over:
        phases = _phases(schedule)
        if schedule["end_behavior"] == "cancel":
            ends_ms = _first(ends_ms, phases[-1]["end_ms"])
        held = sorted(str(item["price_id"]) for item in items)
        for phase in phases:
            if _is_coming(phase, held, rule, now_ms):
                terms.append(_in_phase(phase, terms[-1], prices))
    return _spans(str(row["id"]), since_ms, terms, ends_ms)


def _of_future(schedule: Row, prices: Mapping[str, _Price]) -> list[_Billed]:
    """The spans of a schedule whose subscription does not exist yet. Nothing if a price of its first phase is unknown:
    its interval is read when the subscription begins."""
    first, *later = phases = _phases(schedule)
    if any(item["price"] not in prices for item in first["prices"]):
        return []
    terms = [_in_phase(first, _Terms(first["start_ms"], 0, Rule(first["start_ms"]), frozenset()), prices)]
    for phase in later:
        terms.append(_in_phase(phase, terms[-1], prices))
    ends_ms = phases[-1]["end_ms"] if schedule["end_behavior"] == "cancel" else None
    return _spans(str(schedule["id"]), first["start_ms"], terms, ends_ms)


def _spans(subscription: str, since_ms: int, terms: Sequence[_Terms], ends_ms: int | None) -> list[_Billed]:
    limits = [*(after.begins_ms for after in terms[1:]), None]
    return [
        _Billed(term.free_until_ms, _first(ends_ms, limit), term.rule, subscription, since_ms, term.meters)
        for term, limit in zip(terms, limits, strict=True)
    ]


def _phases(schedule: Row) -> list[dict[str, Any]]:
    """A schedule's phases as `aggregators.mirror` writes them: at least one."""
    phases: list[dict[str, Any]] = json.loads(str(schedule["phases_json"]))
    return phases


def _is_coming(phase: Mapping[str, Any], held: Sequence[str], rule: Rule, now_ms: int) -> bool:
    """Whether the subscription's row does not show a phase yet: it begins later, or it began after the row was read."""
    if phase["start_ms"] > now_ms:
        return True
    if phase["end_ms"] is not None and phase["end_ms"] <= now_ms:
        return False
    is_anchored = phase["anchor"] != "phase_start" or rule.anchor_ms >= phase["start_ms"]
    return sorted(item["price"] for item in phase["prices"]) != held or not is_anchored


def _in_phase(phase: Mapping[str, Any], before: _Terms, prices: Mapping[str, _Price]) -> _Terms:
    """The terms from a phase's start on. Another interval begins a period, and so does the end of a trial
    (docs.stripe.com/billing/subscriptions/prorations)."""
    begins_ms, free_until_ms = phase["start_ms"], max(phase["start_ms"], phase["trial_end_ms"] or 0)
    named = [prices.get(item["price"]) for item in phase["prices"]]
    known = [price for price in named if price is not None]
    rule, meters = before.rule, before.meters
    if len(known) == len(named):
        interval, meters = _interval_of(known), _meters_of(known)
        if interval != rule[1:]:
            rule = Rule(begins_ms, *interval)
    if free_until_ms > begins_ms or phase["anchor"] == "phase_start":
        rule = rule._replace(anchor_ms=free_until_ms)
    return _Terms(begins_ms, free_until_ms, rule, meters)


def _price(row: Row) -> _Price:
    meter = row["meter_id"] if row["usage_type"] == "metered" else None
    return _Price(Interval(str(row["interval"])), _int(row["interval_count"]), None if meter is None else str(meter))


def _interval_of(prices: Sequence[_Price]) -> tuple[Interval, int]:
    """The interval of the metered prices, else that of the others; the shortest of several."""
    metered = [price for price in prices if price.meter is not None]
    intervals = [(_ORDER.index(price.interval), price.interval_count) for price in metered or prices]
    place, count = min(intervals, default=(_ORDER.index(Interval.MONTH), 1))
    return _ORDER[place], count


def _meters_of(prices: Sequence[_Price]) -> frozenset[str]:
    return frozenset(price.meter for price in prices if price.meter is not None)


def _int(value: str | int | None) -> int:
    return int(value or 0)


def _maybe_ms(row: Row, column: str) -> int | None:
    value = row[column]
    return None if value is None else int(value)


def _first(*instants: int | None) -> int | None:
    return min((instant for instant in instants if instant is not None), default=None)
