"""The processor of `billing.events`: what Stripe holds becomes the mirror, whatever the events say."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import pytest
import pytest_asyncio

from aggregators.billing_events import resync_record
from pipeline.logs.quarantine import Header
from pipeline.webhooks.held import append_held
from pipeline.webhooks.processor import FETCH_TRIES_MAX, FETCHES_AT_ONCE_MAX, STALE_MAX, BillingEventProcessor
from pipeline.webhooks.set_aside import append_set_aside
from pipeline.webhooks.walker import CURSOR, Walker
from schemas.billing_events import MIRRORED_TYPES, VIA_HEADER, ObjectKind, ObjectName, Via
from schemas.errors import Fenced, OperatorNeeded, Refused, Transient
from schemas.log import BILLING_EVENTS_TOPIC, REJECTED_TOPIC, Bounds, Log, Record
from schemas.periods import Billing
from schemas.side_tables import OVERLAP, Outcome, Stale, Step
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS

ACME = "acme"


class SignedUp:
    """A world whose account `acme` is linked to a customer with a metered subscription; nothing is delivered yet."""

    def __init__(self, world: BillingWorld, customer: str, subscription: str) -> None:
        self.world = world
        self.stripe = world.stripe
        self.customer = customer
        self.subscription = subscription

    def row(self, rows: Mapping[str, Sequence[Mapping[str, Any]]], table: str = "subscriptions") -> Mapping[str, Any]:
        """The only row of a mirror table."""
        (row,) = rows[table]
        return row


@pytest_asyncio.fixture
async def signed() -> SignedUp:
    """See `SignedUp`."""
    world = BillingWorld(START_MS)
    await world.open()
    customer = world.stripe.customer()
    await world.link(ACME, customer)
    return SignedUp(world, customer, world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter())))


async def quarantined(world: BillingWorld) -> list[dict[str, str]]:
    """The headers of the quarantine's entries."""
    records = await world.records(0, REJECTED_TOPIC)
    return [{name: value.decode() for name, value in record.headers} for record in records]


async def test_a_sign_up_becomes_the_mirror_and_a_binding(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()

    assert await signed.world.mirrored() == signed.world.expected()
    due = await signed.world.tables.due_bindings()
    assert [(each.binding.billing, each.binding.stripe_customer) for each in due] == [
        (Billing.FREE, ""),
        (Billing.MAPPED, signed.customer),
    ]


async def test_an_object_is_fetched_once_for_all_events_of_a_read(signed: SignedUp) -> None:
    """A sign-up makes a dozen events about three objects, and Stripe limits the number of reads."""
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()

    assert len(signed.stripe.fetched) == len(set(signed.stripe.fetched)) == 3


async def test_the_payload_of_an_event_is_not_believed(signed: SignedUp) -> None:
    """An update that comes after the deletion would revive the subscription."""
    before = signed.stripe.happened()
    signed.stripe.cancel(signed.subscription)
    known = {event["id"] for event in before}
    after = [event for event in signed.stripe.happened() if event["id"] not in known]
    await signed.world.deliver([*after, *before])
    await signed.world.process(records_max=1)

    assert signed.row(await signed.world.tables.mirror())["status"] == "canceled"


async def test_an_event_that_comes_again_is_not_fetched_again(signed: SignedUp) -> None:
    events = signed.stripe.happened()
    await signed.world.deliver(events)
    await signed.world.process()
    fetched, audit = len(signed.stripe.fetched), await signed.world.tables.audit(ACME)
    await signed.world.deliver([*events, *events], Via.LIST)
    processor = signed.world.processor()
    await signed.world.process(processor)

    assert len(signed.stripe.fetched) == fetched
    assert await signed.world.tables.audit(ACME) == audit
    assert processor.status().outcomes["repeated"] == 2 * len(events)
    assert await signed.world.tables.position(0) == 3 * len(events)


async def test_events_of_a_stranger_are_held_until_the_customer_is_linked(signed: SignedUp) -> None:
    """The mirror does not wait: it has the customer's rows, so the link binds at once."""
    stranger = signed.stripe.customer()
    signed.stripe.subscribe(stranger, signed.stripe.price(meter=signed.stripe.meter("more")))
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()
    held = await signed.world.tables.held()
    assert {event.customer for event in held} == {stranger}
    assert await signed.world.mirrored() == signed.world.expected()

    await signed.world.link("globex", stranger)
    due = [due for due in await signed.world.tables.due_bindings() if due.account == "globex"]
    assert [each.binding.stripe_customer for each in due] == [stranger]
    assert await append_held(signed.world.log, signed.world.tables, stranger) == len(held)
    signed.stripe.fetched.clear()
    await signed.world.process()
    assert await signed.world.tables.held() == []
    assert signed.stripe.fetched == [], "years of events would cost years of reads of Stripe"
    causes = [row.cause for row in await signed.world.tables.audit("globex")]
    assert sorted(causes[1:]) == sorted(event.event_id for event in held)


async def test_the_canary_waits_for_no_account(signed: SignedUp) -> None:
    canary = signed.stripe.customer()
    await signed.stripe.touch(canary, "1")
    await signed.world.deliver(event for event in signed.stripe.happened() if canary in json.dumps(event))
    processor = BillingEventProcessor(
        signed.world.log, signed.world.tables, signed.stripe, signed.world.clock, canary_customer=canary
    )
    await signed.world.process(processor)

    assert await signed.world.tables.held() == []
    assert processor.status().outcomes[Outcome.IGNORED] > 0
    assert signed.stripe.fetched == []


async def test_an_object_that_is_gone_stays_as_deleted(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()
    signed.stripe.delete(signed.customer)
    await signed.world.deliver(signed.stripe.happened()[-3:])
    await signed.world.process()

    customer = signed.row(await signed.world.tables.mirror(), "stripe_customers")
    assert (customer["deleted"], customer["email"]) == (1, None)
    assert await signed.world.mirrored() == signed.world.expected()
    assert [due.binding.billing for due in await signed.world.tables.due_bindings()][-1] is Billing.FREE


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(b"\xff", "body: is not JSON", id="no JSON"),
        pytest.param(b"[]", "body: is not a JSON object", id="no object"),
        pytest.param(b'{"object": "event", "id": "evt_1"}', "type: ", id="no type"),
        pytest.param(
            b'{"object": "event", "id": "evt_\\u0000", "type": "t", "created": 1, "data": {"object": {}}}',
            "zero character", id="a character that cannot be stored",
        ),
    ],
)  # fmt: skip
async def test_an_unreadable_record_stops_nothing(signed: SignedUp, value: bytes, said: str) -> None:
    await signed.world.append("x", value)
    await signed.world.deliver(signed.stripe.happened())
    processor = signed.world.processor()
    await signed.world.process(processor)

    (entry,) = await quarantined(signed.world)
    assert (entry[Header.REASON], entry[Header.TOPIC], entry[Header.OFFSET]) == (
        "bad_stripe_event", BILLING_EVENTS_TOPIC, "0",
    )  # fmt: skip
    assert said in entry[Header.DETAIL]
    assert processor.status().outcomes["quarantined"] == 1
    assert await signed.world.mirrored() == signed.world.expected()


async def test_a_header_of_another_writer_is_unreadable(signed: SignedUp) -> None:
    value = resync_record("r", ObjectName(ObjectKind.CUSTOMER, signed.customer), signed.customer, 1)
    await signed.world.log.append(BILLING_EVENTS_TOPIC, 0, value, headers=((VIA_HEADER, b"\xff"),))
    await signed.world.process()

    (entry,) = await quarantined(signed.world)
    assert entry[Header.DETAIL] == "tidemark-via: is none of webhook, list, resync"


class Objects:
    """The account at Stripe, some of whose answers are replaced. `silent` ids and lists never get an answer."""

    def __init__(
        self,
        signed: SignedUp,
        *answers: object,
        kind: ObjectKind = ObjectKind.SUBSCRIPTION,
        silent: Collection[str] = (),
    ) -> None:
        self._signed = signed
        self._answers = list(answers)
        self._kind = kind
        self.silent = silent
        self.running = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signed.stripe, name)

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """The next answer, or the object."""
        self.running += 1
        self.most = max(self.most, self.running)
        await self._signed.world.clock.sleep(0)
        self.running -= 1
        if name.id in self.silent:
            raise Transient("Stripe: HTTP 500")
        answer = self._answers.pop(0) if name.kind is self._kind and self._answers else None
        if isinstance(answer, Exception):
            raise answer
        body = await self._signed.stripe.fetch(name)
        return {**body, **answer} if body and isinstance(answer, dict) else body

    async def names(self, kind: ObjectKind, after: str = "", customer: str = "") -> list[tuple[ObjectName, str]]:
        """The list, or no answer."""
        if kind in self.silent:
            raise Transient("Stripe: HTTP 503")
        return await self._signed.stripe.names(kind, after, customer)


async def test_an_object_that_cannot_be_read_poisons_only_its_events(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process(signed.world.processor(objects=Objects(signed, {"start_date": "soon"})))

    details = {entry[Header.DETAIL] for entry in await quarantined(signed.world)}
    assert details == {f"{signed.subscription} start_date: is not an integer of 64 bits"}
    mirror = await signed.world.tables.mirror()
    assert (len(mirror["stripe_customers"]), len(mirror["subscriptions"])) == (1, 0)

    value = resync_record("r", ObjectName(ObjectKind.SUBSCRIPTION, signed.subscription), signed.customer, 1)
    await signed.world.append(signed.customer, value, Via.RESYNC)
    await signed.world.process()
    assert signed.row(await signed.world.tables.mirror())["status"] == "active"


async def test_an_answer_that_is_late_is_waited_for(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    answers = [Transient("no answer", retry_after_s=3)] * (FETCH_TRIES_MAX - 1)
    processor = signed.world.processor(objects=Objects(signed, *answers))
    await signed.world.process(processor)

    assert processor.status().fetches["unanswered"] == FETCH_TRIES_MAX - 1
    assert await signed.world.mirrored() == signed.world.expected()


@pytest.mark.parametrize(
    ("answers", "silent", "raised", "said"),
    [
        pytest.param(
            [Transient("no answer")] * FETCH_TRIES_MAX, [ObjectKind.SUBSCRIPTION], Transient, "HTTP 503", id="no answer"
        ),
        pytest.param([Refused("401")], [], OperatorNeeded, "TIDEMARK_STRIPE_API_KEY", id="the key is refused"),
    ],
)
async def test_without_an_answer_nothing_is_written(
    signed: SignedUp, answers: list[Exception], silent: list[str], raised: type[Exception], said: str
) -> None:
    """The records are read again after the restart."""
    await signed.world.deliver(signed.stripe.happened())
    processor = signed.world.processor(objects=Objects(signed, *answers, silent=silent))
    with pytest.raises(raised, match=said):
        await signed.world.process(processor)

    assert processor.status().waiting_ms == START_MS
    assert await quarantined(signed.world) == []

    assert await signed.world.tables.position(0) is None
    await signed.world.process()
    assert await signed.world.mirrored() == signed.world.expected()


async def test_stripe_may_be_away_for_all_tries_and_come_back(signed: SignedUp) -> None:
    """An outage that ends between the last try and the look at the list sets nothing aside."""
    await signed.world.deliver(signed.stripe.happened())
    answers = [Transient("no answer")] * FETCH_TRIES_MAX
    await signed.world.process(signed.world.processor(objects=Objects(signed, *answers)))

    assert await signed.world.tables.set_aside() == []
    assert await signed.world.mirrored() == signed.world.expected()


async def test_one_object_that_stripe_never_answers_for_stops_nobody_else(signed: SignedUp) -> None:
    """Its events are shown, other customers go on, and the events heal by themselves when Stripe answers."""
    other = signed.stripe.customer()
    await signed.world.link("globex", other)
    signed.stripe.subscribe(other, signed.stripe.price(meter=signed.stripe.meter("more")))
    await signed.world.deliver(signed.stripe.happened())
    objects = Objects(signed, silent={signed.subscription})
    processor = signed.world.processor(objects=objects)
    await signed.world.process(processor, records_max=7)

    bounds = await signed.world.log.bounds(BILLING_EVENTS_TOPIC, 0)
    assert await signed.world.tables.position(0) == bounds.next
    assert processor.status().waiting_ms is None
    aside = await signed.world.tables.set_aside()
    assert processor.status().outcomes[Outcome.SET_ASIDE] == len(aside) > 0
    entries = await quarantined(signed.world)
    assert {entry[Header.OFFSET] for entry in entries} == {str(event.offset) for event in aside}
    assert {(entry[Header.REASON], entry[Header.DETAIL]) for entry in entries} == {
        ("stripe_object_missing", f"subscription {signed.subscription}: Stripe: HTTP 500")
    }
    expected = signed.world.expected()
    expected["subscriptions"] = [row for row in expected["subscriptions"] if row["id"] != signed.subscription]
    owner = "subscription_id"
    expected["subscription_items"] = [
        row for row in expected["subscription_items"] if row[owner] != signed.subscription
    ]
    assert await signed.world.mirrored() == expected

    await append_set_aside(signed.world.log, signed.world.tables)
    await signed.world.process(processor)
    assert len(await quarantined(signed.world)) == len(entries), "an event that waits on is not quarantined again"
    assert len(await signed.world.tables.set_aside()) == len(aside)

    objects.silent = ()
    assert await append_set_aside(signed.world.log, signed.world.tables) == len(aside)
    await signed.world.process(processor)
    assert await signed.world.tables.set_aside() == []
    assert await signed.world.mirrored() == signed.world.expected()


async def test_a_silent_object_costs_all_tries_only_once(signed: SignedUp) -> None:
    """Each of its later events would keep the others waiting for as long."""
    await signed.world.deliver(signed.stripe.happened())
    processor = signed.world.processor(objects=Objects(signed, silent={signed.subscription}))
    await signed.world.process(processor)
    first = processor.status().fetches["unanswered"]
    signed.stripe.change(signed.subscription, metadata={"a": "b"})
    await signed.world.deliver(signed.stripe.happened()[-1:])
    await signed.world.process(processor)

    assert (first, processor.status().fetches["unanswered"]) == (FETCH_TRIES_MAX + 1, FETCH_TRIES_MAX + 3)


async def test_an_object_that_the_database_refuses_stops_nobody_else(signed: SignedUp) -> None:
    """Stripe may show one line under two invoices; the rows of the others are written."""
    other = signed.stripe.customer()
    await signed.world.link("globex", other)
    signed.stripe.subscribe(other, signed.stripe.price())
    signed.stripe.subscribe(signed.customer, signed.stripe.price())
    first, second, _ = (name for name in signed.stripe.listing() if name.kind is ObjectKind.INVOICE)
    lines = (signed.stripe.read(first) or {})["lines"]

    class Doubled(Objects):
        async def fetch(self, name: ObjectName) -> dict[str, object] | None:
            body = await super().fetch(name)
            return {**body, "lines": lines} if body and name == second else body

    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process(signed.world.processor(objects=Doubled(signed)))

    mirror = await signed.world.tables.mirror()
    shown = {row["id"] for row in mirror["invoices"]}
    assert len(shown & {first.id, second.id}) == 1
    assert (len(mirror["stripe_customers"]), len(mirror["subscriptions"])) == (2, 3)
    entries = await quarantined(signed.world)
    assert {entry[Header.REASON] for entry in entries} == {"stripe_object_missing"}
    assert {"a@example.com" in entry[Header.DETAIL] for entry in entries} == {False}
    await signed.world.append(signed.customer, resync_record("r", second, "", 1), Via.RESYNC)
    await append_set_aside(signed.world.log, signed.world.tables)
    await signed.world.process()
    assert await signed.world.tables.set_aside() == []
    assert await signed.world.mirrored() == signed.world.expected()


async def test_an_unreadable_object_does_not_keep_back_the_events_other_objects(signed: SignedUp) -> None:
    """`customer.subscription.created` was lost, and the invoice's events name the subscription too."""
    signed.stripe.subscribe(signed.customer, signed.stripe.price())
    events = [event for event in signed.stripe.happened() if event["type"].startswith("invoice.")]
    await signed.world.deliver(events)
    broken = [{"attempt_count": None}] * 10
    await signed.world.process(signed.world.processor(objects=Objects(signed, *broken, kind=ObjectKind.INVOICE)))

    mirror = await signed.world.tables.mirror()
    assert (len(mirror["invoices"]), len(mirror["subscriptions"]) > 0) == (0, True)
    assert len(await signed.world.tables.set_aside()) == len(events)
    assert {entry[Header.REASON] for entry in await quarantined(signed.world)} == {"bad_stripe_event"}


async def test_fetches_at_once_are_limited(signed: SignedUp) -> None:
    for _ in range(FETCHES_AT_ONCE_MAX * 2):
        signed.stripe.customer()
    await signed.world.deliver(signed.stripe.happened())
    objects = Objects(signed)
    await signed.world.process(signed.world.processor(objects=objects))

    assert objects.most == FETCHES_AT_ONCE_MAX


class Racing:
    """The side tables, to whose first commits another process comes first."""

    def __init__(self, inner: Any, times: int) -> None:
        self._inner = inner
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, step: Step) -> Mapping[str, Outcome]:
        """Fail, or commit."""
        if self._times:
            self._times -= 1
            raise Stale("another process fetched an object")
        outcomes: Mapping[str, Outcome] = await self._inner.commit(step)
        return outcomes


async def test_an_object_that_somebody_else_fetched_is_fetched_again(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process(signed.world.processor(tables=Racing(signed.world.tables, STALE_MAX - 1)))

    assert len(signed.stripe.fetched) == 3 * STALE_MAX
    assert await signed.world.mirrored() == signed.world.expected()


async def test_a_race_without_an_end_is_a_failure(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    with pytest.raises(Transient, match="objects changed during each of 10 commits"):
        await signed.world.process(signed.world.processor(tables=Racing(signed.world.tables, STALE_MAX)))


async def test_a_process_that_lost_its_partition_is_fenced(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    old = signed.world.processor()
    await old.start_offset(0)
    await signed.world.process()
    await signed.world.deliver(signed.stripe.happened()[:1])
    records: list[Record] = await signed.world.records(0, BILLING_EVENTS_TOPIC)
    with pytest.raises(Fenced):
        await old.step(0, records)


async def test_records_below_the_position_are_not_read_again(signed: SignedUp) -> None:
    """After a rebalance some come again, in other groups."""
    await signed.world.deliver(signed.stripe.happened())
    processor = signed.world.processor()
    await signed.world.process(processor)
    records = await signed.world.records(0, BILLING_EVENTS_TOPIC)
    await processor.step(0, records)

    assert await signed.world.tables.position(0) == records[-1].next_offset
    assert processor.status().outcomes["repeated"] == 0


async def test_events_that_the_log_deleted_before_they_were_read_are_told(
    signed: SignedUp, caplog: pytest.LogCaptureFixture
) -> None:
    events = signed.stripe.happened()
    await signed.world.deliver(events[:2])
    await signed.world.process()
    signed.world.clock.advance(3_600_000)
    now_ms = signed.world.clock.now_ms()
    await signed.world.tables.move_cursor(CURSOR, now_ms // 1000, now_ms)
    await signed.world.deliver(events)
    del signed.world.log._partitions[BILLING_EVENTS_TOPIC, 0].records[:5]
    with caplog.at_level(logging.ERROR):
        await signed.world.process()

    assert "the events from 2 to 5 are gone and were not read" in caplog.text
    assert await signed.world.tables.position(0) == 2 + len(events)

    lost = [event["id"] for event in events[2:5] if event["type"] in MIRRORED_TYPES]
    unread = await signed.world.tables.unknown(lost)
    walked = await Walker(signed.world.log, signed.stripe, signed.world.tables, signed.world.clock).go_on()
    await signed.world.process()
    assert walked.appended == len(unread) > 0
    assert walked.since_s < START_MS // 1000
    assert await signed.world.tables.unknown(lost) == set()


async def test_a_log_that_ends_before_the_position_is_not_this_one(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()
    partition = signed.world.log._partitions[BILLING_EVENTS_TOPIC, 0]
    partition.records.clear()
    partition.next_offset = 1
    with pytest.raises(OperatorNeeded, match="TIDEMARK_SQL_URL or TIDEMARK_LOG_URL"):
        await signed.world.processor().start_offset(0)


class GoingOn:
    """The log, while another process reads and commits what comes."""

    def __init__(self, signed: SignedUp) -> None:
        self._signed = signed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signed.world.log, name)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """The bounds of a moment ago."""
        bounds = await self._signed.world.log.bounds(topic, partition)
        await self._signed.world.deliver(self._signed.stripe.happened())
        await self._signed.world.process()
        return bounds


async def test_a_process_that_goes_on_meanwhile_is_no_reason_to_call_an_operator(signed: SignedUp) -> None:
    """A partition that moves is read by two processes for a while."""
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()
    position = await signed.world.tables.position(0)
    assert position == await signed.world.processor(log=cast("Log", GoingOn(signed))).start_offset(0)
    assert position < (await signed.world.tables.position(0) or 0)


async def test_the_delay_is_that_of_the_last_event(signed: SignedUp) -> None:
    await signed.world.deliver(signed.stripe.happened())
    signed.world.clock.advance(90_000)
    processor = signed.world.processor()
    assert processor.status().delay_s is None
    await signed.world.process(processor)

    assert processor.status().delay_s == pytest.approx(90, abs=1)


async def test_two_subscriptions_that_bill_one_meter_are_shown_once(signed: SignedUp) -> None:
    """The older one is followed, and nothing else may stop because Stripe is in a state that it should not be in."""
    item = (signed.stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, signed.subscription)) or {})["items"]["data"][0]
    signed.world.clock.advance(3_600_000)
    second = signed.stripe.subscribe(signed.customer, item["price"]["id"])
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process(records_max=1)
    signed.stripe.change(second, metadata={"a": "b"})
    await signed.world.deliver(signed.stripe.happened()[-1:])
    await signed.world.process()

    (row,) = [row for row in await signed.world.tables.audit(ACME) if row.entity == OVERLAP]
    assert row.entity_id == f"{signed.subscription} {second}"
    assert row.reason.endswith(f"{signed.subscription} is followed")
    (overlap,) = await signed.world.tables.overlaps(signed.world.clock.now_ms())
    assert (overlap.customer, overlap.other, overlap.reason) == (signed.customer, second, row.reason)
    bindings = [due.binding for due in await signed.world.tables.due_bindings()]
    assert [binding.anchor_ms for binding in bindings if binding.billing is Billing.MAPPED] == [START_MS]


@pytest.mark.parametrize("by", ["cancelling one", "unlinking"])
async def test_an_overlap_that_is_over_is_counted_no_more(signed: SignedUp, by: str) -> None:
    """The alert ends when somebody has cancelled one of the two, and the audit keeps that there was an overlap."""
    item = (signed.stripe.read(ObjectName(ObjectKind.SUBSCRIPTION, signed.subscription)) or {})["items"]["data"][0]
    second = signed.stripe.subscribe(signed.customer, item["price"]["id"])
    await signed.world.deliver(signed.stripe.happened())
    await signed.world.process()
    assert len(await signed.world.tables.overlaps(signed.world.clock.now_ms())) == 1
    signed.world.clock.advance(60_000)
    if by == "unlinking":
        await signed.world.tables.unlink(ACME, "ada", "wrong", signed.world.clock.now_ms())
    else:
        before = signed.stripe.happened()
        signed.stripe.cancel(second)
        await signed.world.deliver(signed.stripe.happened()[len(before) :])
        await signed.world.process()
    assert await signed.world.tables.overlaps(signed.world.clock.now_ms()) == []
    assert [row.entity for row in await signed.world.tables.audit(ACME)].count(OVERLAP) == 1


class Gate:
    """The account at Stripe, whose first answer is on its way until the gate opens."""

    def __init__(self, signed: SignedUp) -> None:
        self._signed = signed
        self.asked, self.opened = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signed.stripe, name)

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """What Stripe had when it was asked."""
        body = await self._signed.stripe.fetch(name)
        self.asked.set()
        await self.opened.wait()
        return body


async def test_a_slow_answer_never_replaces_a_newer_one() -> None:
    """Thin events name no customer, so two partitions may have events about one subscription."""
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    customer = world.stripe.customer()
    await world.link(ACME, customer)
    subscription = world.stripe.subscribe(customer, world.stripe.price(meter=world.stripe.meter()))
    signed, name = SignedUp(world, customer, subscription), ObjectName(ObjectKind.SUBSCRIPTION, subscription)
    for partition in (0, 1):
        value = resync_record(f"r{partition}", name, customer, 1)
        await world.log.append(BILLING_EVENTS_TOPIC, partition, value, headers=((VIA_HEADER, b"resync"),))
    records = [await world.records(partition, BILLING_EVENTS_TOPIC) for partition in (0, 1)]
    gate = Gate(signed)
    slow, fast = world.processor(objects=gate), world.processor()
    for processor in (slow, fast):
        for partition in (0, 1):
            await processor.start_offset(partition)
    step = asyncio.create_task(slow.step(0, records[0]))
    await gate.asked.wait()
    world.stripe.cancel(subscription)
    await fast.step(1, records[1])
    gate.opened.set()
    await step

    assert signed.row(await world.tables.mirror())["status"] == "canceled"
