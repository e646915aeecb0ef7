"""A business that sells seats: its accounts' holders come and go, and what is paid follows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from pipeline.changes.following import follow
from pipeline.changes.parts import Parts
from pipeline.changes.seating import SeatsFull, SeatWish, seat_parts, take_seat
from schemas.clock import DAY_MS
from schemas.seats import QUIET_MS, Seat, SeatState
from tests.worlds.changing import Changing

SEATS = "team.v1.seat.month.usd"
YEARLY_SEATS = "team.v1.seat.year.usd"


def seats_catalog(seats_down: str = "keep_paid") -> str:
    """A plan of 10 dollars a seat, a cheaper one, and a free plan with one seat."""
    return f"""\
version: 1
meters:
  - {{slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}}
currencies: {{usd: 2}}
defaults: {{plan: free, automatic_tax: false}}
features:
  seats: {{type: seat, merge: sum, holder: user, invites_reserve_h: 168}}
plans:
  free:
    version: 1
    prices: none
    grants: {{seats: 1}}
    over_limit: {{seats: block_downgrade}}
  solo:
    version: 1
    name: Solo
    rank: 5
    prices:
      - {{component: base, month: {{usd: "30.00"}}}}
    grants: {{seats: 3}}
    over_limit: {{seats: block_downgrade}}
  small:
    version: 1
    name: Small
    rank: 10
    prices:
      - {{component: seat, quantity: seats, month: {{usd: "5.00"}}}}
    grants: {{seats: quantity}}
  base:
    version: 1
    name: Base
    rank: 30
    prices:
      - {{component: fee, month: {{usd: "200.00"}}}}
      - {{component: seat, quantity: seats, included: 10, month: {{usd: "15.00"}}}}
    grants: {{seats: quantity}}
  team:
    version: 1
    name: Team
    rank: 20
    prices:
      - {{component: seat, quantity: seats, month: {{usd: "10.00"}}, year: {{usd: "1548.00"}}}}
    grants: {{seats: quantity}}
addons:
  more_seats:
    version: 1
    for: [team]
    price: {{month: {{usd: "15.00"}}}}
    grants: {{seats: {{add: 2}}}}
changes: {{seats_down: {seats_down}}}
dunning: {{fallback_plan: free}}
"""


def day_ms(text: str) -> int:
    """An instant of a day or a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000


class Seated(Changing):
    """Accounts whose holders are kept. What somebody does is followed by `paid`."""

    def __init__(self, begins: str = "2027-03-01") -> None:
        super().__init__(day_ms(begins))
        self.clock.ms -= QUIET_MS

    async def holding(self, number: int, *keys: str) -> None:
        """Acme subscribes to so many seats, which holders have."""
        self.clock.ms += QUIET_MS
        await self.subscribed(*keys, quantity=number)
        await self.settle()
        for each in range(number):
            await self.take(f"holder {each}")
        await self.paid()

    def about(self, account: str, customer: str, subscription: str) -> None:
        """All words are about another account from now on."""
        self.account, self.customer, self.subscription = account, customer, subscription

    async def take(self, holder: str, *, is_reserved: bool = False) -> Seat:
        """A seat that must be given."""
        found = await self.asked(holder, is_reserved=is_reserved)
        assert not isinstance(found, SeatsFull), found.message
        return found

    async def asked(self, holder: str, *, is_reserved: bool = False) -> Seat | SeatsFull:
        """Ask for a seat."""
        wish = SeatWish(self.account, "seats", holder, is_reserved)
        found = await take_seat(seat_parts(self.parts()), wish, "ann")
        return found if isinstance(found, SeatsFull) else found[0]

    async def release(self, holder: str) -> None:
        """Release the seat of a holder."""
        for seat in await self.sql.seats.listed(self.account, "seats", self.clock.ms, 1_000):
            if seat.holder == holder:
                released = await self.sql.seats.release(self.account, seat.id, "ann", self.clock.ms)
                assert released is not None
                assert released.state is SeatState.RELEASED

    async def paid(self, parts: Parts | None = None) -> None:
        """The quiet time passes, the paid quantity follows, and Stripe's events arrive."""
        self.clock.ms += QUIET_MS
        await follow(parts or self.parts())
        await self.settle()

    async def until(self, day: str) -> None:
        """Time passes at Stripe and here until a quiet time before a day begins, and Stripe's events arrive."""
        self.clock.ms = day_ms(day) - QUIET_MS
        self.stripe.simulator.catch_up()
        await self.settle()

    async def days(self, number: int) -> None:
        """So many days pass."""
        self.clock.ms += number * DAY_MS
        self.stripe.simulator.catch_up()
        await self.settle()

    def quantity(self) -> int:
        """The quantity of seats at Stripe."""
        (found,) = [quantity for key, quantity in self.bought() if ".seat." in key]
        assert found is not None
        return found

    async def allowed(self, account: str = "") -> int:
        """How many seats the account is allowed now, by its checks."""
        answer = await self.checks.check(account or self.account, "seats", Decimal(1))
        assert isinstance(answer.decision.limit, Decimal)
        return int(answer.decision.limit)

    async def held(self) -> int:
        """How many seats are held."""
        found = await self.sql.seats.holders(self.account, self.clock.ms)
        return found["seats"].held if found else 0

    async def waits(self) -> int:
        """How many accounts' paid quantities do not follow yet."""
        return (await self.sql.seats.waiting()).accounts
