"""Compares what Stripe's invoices and the invoice items bill with what was counted, span by span and unit by unit.

Everything is read at Stripe and from the bytes of the log; the prices tell which quantity an amount stands for.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.billing.closing import not_sold
from schemas.bills import BillState, InvoiceItemState
from schemas.clock import DAY_MS, SECOND_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Intent
from simulation.faults import Fault
from simulation.processes import SLOW_LATENCY_S, STALL_S_MAX
from simulation.redrive import BLURRED
from simulation.traffic import PARTITIONS

if TYPE_CHECKING:
    from simulation.world import World

SHOWN_MAX: Final = 5
# Between the question whether an invoice is final and the send, a sink appends. Each of the calls may be slow or stall.
ASKED_MS_MAX: Final = round(2_000 * (STALL_S_MAX + SLOW_LATENCY_S["stripe"]))
_ENDED: Final = ("canceled", "incomplete_expired")
_UNSENT: Final = (InvoiceItemState.INTENDED, InvoiceItemState.HELD)


class Span(NamedTuple):
    """What one line of an invoice bills: `[start_s, end_s)` of a customer's meter."""

    customer: str
    event_name: str
    start_s: int
    end_s: int


class Told(NamedTuple):
    """Usage that has an outcome: Stripe took it, or its invoice was final. `is_sent`: Stripe has the event."""

    identifier: str
    customer: str
    event_name: str
    instant_s: int
    quantity: Decimal
    period_end_ms: int
    is_late: bool


async def unbilled(world: World, since_ms: int) -> str:
    """A text that names an invoice that is not compared since an instant, or an item that is not made; empty if there
    is none."""
    bills = world.invoicing.bills
    final = [
        invoice["id"] for invoice in _invoices(world) if invoice["status"] != "draft" and any(_metered(world, invoice))
    ]
    noted = await bills.closings(final)
    for invoice in final:
        closing = noted.get(invoice)
        if closing is None or closing.state in (BillState.DRAFT, BillState.WAITING, BillState.UNBILLED):
            return f"the invoice {invoice}: {closing and closing.state}"
        # A void invoice bills nothing, and the controller looks at it again only after days.
        if closing.state is not BillState.VOID and world.invoicing.bills.noted_ms[invoice][1] < since_ms:
            return f"the invoice {invoice} is not looked at again"
    unsent = [row for row in world.tables.rows("invoice_items") if row["state"] == InvoiceItemState.INTENDED]
    if unsent:
        return f"{len(unsent)} invoice items"
    # The controller reads a new price in its next turn, and knows what the price sells only then.
    running = {
        row["id"] for row in world.tables.rows("subscriptions") if row["status"] not in _ENDED and not row["deleted"]
    }
    known = {row["id"] for row in world.tables.rows("prices")}
    items = [row for row in world.tables.rows("subscription_items") if row["subscription_id"] in running]
    unread = {row["price_id"] for row in items if row["usage_type"] == "metered"} - known
    return f"the prices {sorted(unread)}" if unread else ""


async def verify_invoices(world: World) -> None:
    """Make all comparisons. A difference becomes an error of the run."""
    told = list(_told(world).values())
    spans = _spans(world)
    await _billed(world, told, _lines(world, void=False), set(_lines(world, void=True)))
    _items(world)
    _late(world, told)
    await _unsold(world, told, spans)


def _invoices(world: World) -> list[dict[str, Any]]:
    return list(world.account.pages("GET /v1/invoices", {}))


def _metered(world: World, invoice: dict[str, Any]) -> Iterator[tuple[Span, dict[str, Any], Decimal]]:
    """The lines of an invoice that bill a meter: what for, the line, and the price of a unit."""
    if invoice["billing_reason"] == "subscription_create":
        # A line for a period that begins bills nothing.
        return
    for line in world.account.pages("GET /v1/invoices/{invoice}/lines", {}, invoice["id"]):
        price = (line["pricing"] or {"price_details": {"price": ""}})["price_details"]["price"]
        name, unit = world.subscribers.prices.get(price, ("", Decimal(0)))
        if name and line["amount"] >= 0:
            period = line["period"]
            yield Span(invoice["customer"], name, period["start"], period["end"]), line, unit


def _lines(world: World, *, void: bool) -> dict[Span, tuple[Decimal, Decimal, str]]:
    """The quantity, the price of a unit and the invoice of each span that a finalized invoice bills, or a void one
    billed."""
    found: dict[Span, tuple[Decimal, Decimal, str]] = {}
    for invoice in _invoices(world):
        if invoice["status"] == "draft" or (invoice["status"] == "void") != void:
            continue
        for span, line, unit in _metered(world, invoice):
            if span in found:
                world.fail("invoices", f"{span} is on two lines")
            found[span] = (Decimal(line["amount"]) / unit, unit, invoice["id"])
    return found


def _spans(world: World) -> list[Span]:
    """All spans that an invoice bills or will bill."""
    found = [span for invoice in _invoices(world) for span, *_ in _metered(world, invoice)]
    for subscription in world.account.pages("GET /v1/subscriptions", {"status": "all"}):
        if subscription["status"] in _ENDED:
            continue
        for item in world.account.pages("GET /v1/subscription_items", {"subscription": subscription["id"]}):
            name, _ = world.subscribers.prices.get(item["price"]["id"], ("", 0))
            if name:
                period = item["current_period_start"], item["current_period_end"]
                found.append(Span(subscription["customer"], name, *period))
    return found


def _told(world: World) -> dict[str, Told]:
    """The usage that has an outcome, by the identifier of the first revision: a redrive tells the same usage again."""
    intents: dict[str, dict[str, Any]] = {}
    attempts: dict[str, dict[str, Any]] = {}
    late: dict[str, dict[str, Any]] = {}
    for partition in range(PARTITIONS):
        for record in world.log.appended.get((REPORTS_TOPIC, partition), ()):
            parsed = json.loads(record.value or b"[]")
            for entry in parsed if isinstance(parsed, list) else [parsed]:
                match entry["kind"]:
                    case "intent":
                        intents.setdefault(entry["identifier"], entry)
                    case "attempt":
                        attempts[entry["identifier"]] = entry
                    case "outcome" if entry["status"] == "late":
                        late.setdefault(entry["identifier"], entry)
    found: dict[str, Told] = {}
    for stored in world.stripe.accepted():
        event = stored.event
        quantity, end_ms = _quantity(intents[event.identifier]), intents[event.identifier]["period_end_ms"]
        root = event.identifier.partition("-r")[0]
        found[root] = Told(
            root, event.stripe_customer, event.event_name, event.timestamp_s, quantity, end_ms, is_late=False
        )
    for identifier, outcome in late.items():
        intent, root = Intent.model_validate(intents[identifier]), identifier.partition("-r")[0]
        attempt = attempts.get(identifier)
        customer = attempt["stripe_customer"] if attempt else outcome["stripe_customer"]
        instant_s = attempt["timestamp_s"] if attempt else intent.instant_ms // SECOND_MS
        quantity = _quantity(intents[identifier])
        found.setdefault(
            root, Told(root, customer, intent.event_name, instant_s, quantity, intent.period_end_ms, is_late=True)
        )
    return found


def _quantity(intent: dict[str, Any]) -> Decimal:
    return Decimal(intent["delta_minor"]).scaleb(-intent["scale"])


async def _billed(
    world: World, told: list[Told], lines: dict[Span, tuple[Decimal, Decimal, str]], void: set[Span]
) -> None:
    """Check that each line and the items of its span bill what was counted in the span. Of what a void invoice billed,
    nobody says what its items should be."""
    noted = await world.invoicing.bills.closings([invoice for *_, invoice in lines.values()])
    counted: defaultdict[tuple[str, str], list[Told]] = defaultdict(list)
    for each in told:
        counted[each.customer, each.event_name].append(each)
    items: Counter[tuple[str, str, str]] = Counter()
    for item in _stripe_items(world):
        of = item["metadata"]
        items[item["customer"], of["tidemark_meter"], of["tidemark_span"]] += item["amount"]
    for row in world.tables.rows("invoice_items"):
        if row["state"] == InvoiceItemState.WRITTEN_OFF or _is_held_for_nobody(world, row):
            named = f"{row['start_ms']}-{row['end_ms']}"
            items[row["stripe_customer"], row["event_name"], named] += row["amount_minor"]
    for span, (quantity, unit, invoice) in lines.items():
        key = f"{span.start_s * SECOND_MS}-{span.end_s * SECOND_MS}"
        amount = items.pop((span.customer, span.event_name, key), 0)
        here = [each for each in counted[span.customer, span.event_name] if span.start_s <= each.instant_s < span.end_s]
        used, billed = sum((each.quantity for each in here), Decimal(0)), quantity + Decimal(amount) / unit
        if any(each.is_late for each in here):
            world.faults.note(Fault.INVOICE_LATE)
        if used:
            world.faults.note(Fault.INVOICE_PASSED)
        # Two subscriptions of a customer bill one meter at one time, or the customer is deleted: Stripe takes no
        # item, and none for later usage is made either: a person decides, see docs/runbook/late-usage.md.
        is_held = invoice in noted and noted[invoice].state is BillState.HELD
        is_gone = span.customer in world.subscribers.deleted
        is_doubtful = is_held and (is_gone or any(_overlap(span, other) for other in lines))
        if used != billed and not is_doubtful:
            world.fail("invoices", f"{invoice} bills {quantity} and its items {amount} / {unit} of {used} in {span}")
    for span in void:
        items.pop((span.customer, span.event_name, f"{span.start_s * SECOND_MS}-{span.end_s * SECOND_MS}"), None)
    if items:
        world.fail("invoice items", f"{dict(items)} bill spans of no invoice")


def _overlap(span: Span, other: Span) -> bool:
    """Whether another line bills the same meter of the customer for a part of the same time."""
    is_same_meter = other != span and other[:2] == span[:2]
    return is_same_meter and other.start_s < span.end_s and span.start_s < other.end_s


def _stripe_items(world: World) -> list[dict[str, Any]]:
    rows = world.account.pages("GET /v1/invoiceitems", {})
    return [row for row in rows if "tidemark_item" in row["metadata"]]


def _is_held_for_nobody(world: World, row: dict[str, Any]) -> bool:
    """Whether an item is held because its customer is deleted: Stripe lets nobody bill that customer."""
    return row["state"] == InvoiceItemState.HELD and row["stripe_customer"] in world.subscribers.deleted


def _items(world: World) -> None:
    """Check that each invoice item is at Stripe once, and none that was written off."""
    made = Counter(item["metadata"]["tidemark_item"] for item in _stripe_items(world))
    rows = {row["identifier"]: row for row in world.tables.rows("invoice_items")}
    wanted = {key: 1 for key, row in rows.items() if row["state"] == InvoiceItemState.CREATED}
    if wanted != dict(made):
        world.fail("invoice items", f"at Stripe {dict(made)}, by the store {wanted}")
    for row in rows.values():
        if row["state"] in _UNSENT and not _is_held_for_nobody(world, row):
            world.fail("invoice items", f"{row['identifier']} is {row['state']}: {row['detail']}")


def _late(world: World, told: list[Told]) -> None:
    """Check that no event was sent long after it was known that its invoice is final. The sink asks only for usage
    whose period has ended: if a price was swapped within it, an invoice item bills what is sent in vain. Nobody knows
    what a line bills before its price was read."""
    received = {stored.event.identifier.partition("-r")[0]: stored for stored in world.stripe.accepted()}
    for invoice in _invoices(world):
        bills = world.invoicing.bills
        if invoice["status"] == "draft" or invoice["id"] not in bills.noted_ms:
            continue
        for span, line, _ in _metered(world, invoice):
            priced_ms = bills.priced_ms[line["pricing"]["price_details"]["price"]]
            known_ms = max(bills.noted_ms[invoice["id"]][0], priced_ms)
            for each in told:
                is_here = (each.customer, each.event_name) == span[:2] and span.start_s <= each.instant_s < span.end_s
                sent = received.get(each.identifier)
                since_ms = max(known_ms, each.period_end_ms)
                if is_here and sent and sent.received_ms > since_ms + ASKED_MS_MAX:
                    world.fail("late usage", f"{each} was sent although {invoice['id']} was final")


async def _unsold(world: World, told: list[Told], spans: list[Span]) -> None:
    """Check that the product knows all usage that nothing bills."""
    expected: Counter[tuple[str, str]] = Counter()
    customers = {each.customer for each in told}
    sold: defaultdict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        sold[span.customer, span.event_name].append(span)
    for each in told:
        key = each.customer, each.event_name
        if not any(span.start_s <= each.instant_s < span.end_s for span in sold[key]):
            expected[key] += each.quantity  # type: ignore[assignment]  # exact
    bills, ledger = world.invoicing.bills, world.invoicing.ledger
    found: Counter[tuple[str, str]] = Counter()
    for row in await not_sold(bills, ledger, sorted(customers), 0, world.clock.now_ms() + DAY_MS):
        found[row.stripe_customer, row.event_name] += row.quantity  # type: ignore[assignment]  # exact
    # What Stripe rejected, and a redrive could not prove, the product takes for accepted: the reconciler names it.
    doubtful = {stored.event.event_name for stored in world.stripe.events if stored.code} & {BLURRED}
    keys = [key for key in {**expected, **found} if expected[key] != found[key] and key[1] not in doubtful]
    if keys:
        shown = "; ".join(f"{key}: oracle {expected[key]}, found {found[key]}" for key in keys[:SHOWN_MAX])
        world.fail("not sold", f"{len(keys)} differ: {shown}")
