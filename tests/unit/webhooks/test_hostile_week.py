"""A week in which everything happens to webhooks that can: from Stripe's signature to the side tables.

Each delivery comes three times and out of order, an outage loses six hours, the secret is rotated in the middle, a
forger and a second mode of the account knock at the door, and customers cancel meanwhile.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any

import stripe

from pipeline.webhooks.walker import Walker
from schemas.clock import DAY_MS, HOUR_MS, SECOND_MS
from schemas.control import Genesis
from tests.worlds.billing import BillingWorld
from tests.worlds.gateway import Gateway, running
from tests.worlds.reconciler import START_MS

OLD, NEW, FORGED = "whsec_old", "whsec_new", "whsec_forged"
ACCOUNTS = [f"account_{number}" for number in range(24)]
# The hours of the outage, and of the rotation: both secrets are valid for a day.
OUTAGE = range(40, 46)
ROTATION = range(60, 84)
HOURS = 7 * 24
EVENTS = "GET /v1/events"


class Week:
    """The account at Stripe, and what its endpoint was sent."""

    def __init__(self, gateway: Gateway, world: BillingWorld, secrets: Path) -> None:
        self.gateway, self.world, self.secrets = gateway, world, secrets
        self.dice = random.Random(30)
        meter = world.stripe.meter()
        self.prices = [world.stripe.price(meter=meter), world.stripe.price(meter=meter, amount=7)]
        self.subscriptions: dict[str, str] = {}
        self.customers: dict[str, str] = {}
        self.known: set[str] = set()
        self.waiting: list[dict[str, Any]] = []
        self.lost: list[str] = []

    async def happen(self, hour: int) -> None:
        """One hour of the business: a sign-up, a change or a cancellation."""
        stripe_account, account = self.world.stripe, self.dice.choice(ACCOUNTS)
        if account not in self.customers:
            self.customers[account] = stripe_account.customer()
            await self.world.link(account, self.customers[account])
            self.subscriptions[account] = stripe_account.subscribe(self.customers[account], self.prices[0])
        elif account in self.subscriptions and hour % 20 == 0:
            stripe_account.cancel(self.subscriptions.pop(account))
        elif account in self.subscriptions:
            item = self._item(self.subscriptions[account])
            stripe_account.change(
                self.subscriptions[account], items=[{"id": item, "price": self.dice.choice(self.prices)}]
            )

    def _item(self, subscription: str) -> str:
        path = "GET /v1/subscriptions/{subscription_exposed_id}"
        return str(self.world.stripe.call(path, {}, subscription)["items"]["data"][0]["id"])

    async def deliver(self, hour: int) -> None:
        """Three deliveries of each new event, some now and some in later hours, in any order; none in the outage."""
        fresh: list[str] = []
        # The list begins with the newest event.
        for event in takewhile(lambda event: event["id"] not in self.known, self.world.stripe.pages(EVENTS, {})):
            if hour in OUTAGE:
                self.lost.append(event["id"])
            else:
                self.waiting += [event] * 3
            fresh.append(event["id"])
        self.known.update(fresh)
        self.dice.shuffle(self.waiting)
        number = len(self.waiting) if hour == HOURS - 1 else self.dice.randrange(len(self.waiting) + 1)
        if hour in OUTAGE:
            number = 0
        now, self.waiting = self.waiting[:number], self.waiting[number:]
        # Stripe signs with the newest secret; those of before the rotation have the old one.
        secret = OLD if hour < ROTATION.start else NEW
        assert {200} >= {await self.post(json.dumps(event), secret) for event in now}

    async def post(self, text: str, secret: str) -> int:
        """Deliver a body that is signed now; the status of the answer."""
        at_s = self.world.clock.now_ms() // SECOND_MS
        signature = stripe.WebhookSignature.generate_signature_header(text, secret, timestamp=at_s)
        headers = {"stripe-signature": signature, "content-type": "application/json"}
        return (await self.gateway.client.post("/v1/stripe/webhook", content=text, headers=headers)).status_code


async def test_a_hostile_week_leaves_what_a_full_reading_finds(tmp_path: Path) -> None:
    """Tables as of a full fetch, each event once in the audit, no cancelled account back, and the recovery appends
    exactly what was lost."""
    secrets = tmp_path / "secrets"
    secrets.write_text(f"{OLD}\n")
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    ours: dict[str, Any] = {
        "settings": {"stripe_webhook_secrets": secrets},
        "genesis": Genesis(log_id=world.log_id, partitions=2, stripe_account="acct_1"),
    }
    async with running(tmp_path, world, **ours) as gateway:
        week = Week(gateway, world, secrets)
        for hour in range(HOURS):
            world.clock.advance(HOUR_MS)
            if hour == ROTATION.start:
                secrets.write_text(f"{NEW}\n{OLD}\n")
            elif hour == ROTATION.stop:
                secrets.write_text(f"{NEW}\n")
            for _ in range(3):
                await week.happen(hour)
            await week.deliver(hour)
            if hour % 3 == 0:
                await world.process()
        forged = json.dumps({**world.stripe.happened()[0], "id": "evt_forged"})
        refused = [await week.post(forged, secret) for secret in (FORGED, OLD)]
        foreign = await week.post(json.dumps({**json.loads(forged), "id": "evt_live", "livemode": True}), NEW)
        await world.process()
        quarantined = await gateway.quarantined()

    walker = Walker(world.log, world.stripe, world.tables, world.clock)
    ninety_hours_s = world.clock.now_ms() // SECOND_MS - 90 * 3_600
    after_outage = await walker.walk(ninety_hours_s)
    week_ago_s = (world.clock.now_ms() - 8 * DAY_MS) // SECOND_MS
    recovered = await walker.walk(week_ago_s)
    await world.process()

    # A forgery leaves nothing; a signed event of the other mode is kept apart.
    assert refused == [400, 400]
    assert (foreign, len(quarantined)) == (200, 1)
    # What came is not read again; what was lost is read once.
    assert after_outage.appended == 0
    mirrored = [event["id"] for event in await world.stripe.events(0, 1 << 40)]
    assert recovered.appended == len(set(week.lost) & set(mirrored)) > 5
    assert (await walker.walk(week_ago_s)).appended == 0
    # The tables are those of a full reading.
    assert await world.mirrored() == world.expected()
    cancelled = sorted(set(week.customers) - set(week.subscriptions))
    assert cancelled
    for account in cancelled:
        rows = (await world.tables.mirror())["subscriptions"]
        statuses = {row["status"] for row in rows if row["customer_id"] == week.customers[account]}
        assert statuses == {"canceled"}
    # Each change is once in the audit.
    for account in week.customers:
        audited = await world.tables.audit(account, 10_000)
        changes = Counter((row.cause, row.entity, row.entity_id) for row in audited)
        assert set(changes.values()) == {1}
    assert not await world.tables.unknown([event for event in week.known if event in set(mirrored)])
