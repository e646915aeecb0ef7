"""The lookup of unanswered reports: how often the topic is read."""

from __future__ import annotations

from aggregators.stripe_sums import StripeSum
from pipeline.billing.lookup import StripeLookup
from pipeline.logs.fake import FakeLog
from schemas.log import REPORTS_TOPIC, Record, TopicSpec
from schemas.periods import Period
from sinks.stripe.fake import FakeStripe
from tests.worlds.clock import ManualClock
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, PERIOD_START_MS


class CountingLog(FakeLog):
    """Counts reads from the start of a partition."""

    from_the_start = 0

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        self.from_the_start += offset == 0
        return await super().read(topic, partition, offset, records_max)


async def test_lookups_of_many_customers_read_the_topic_once() -> None:
    """Partitions look up customers in turn; a read of a large topic per lookup would hold the sender up for hours."""
    clock = ManualClock(NOW_MS)
    log = CountingLog(clock)
    await log.create_topics([TopicSpec(REPORTS_TOPIC, 1, -1)])
    await log.append(REPORTS_TOPIC, 0, b"{}")
    lookup = StripeLookup(log, FakeStripe(clock), clock, 0)
    period = Period(PERIOD_START_MS, PERIOD_END_MS)
    sums = [StripeSum("tokens", f"cus_{name}", period) for name in "abc"]

    for _ in range(2):
        for each in sums:
            await lookup.look_up("unknown", each, [each])
    assert log.from_the_start == 1

    earlier = StripeSum("tokens", "cus_a", Period(0, PERIOD_START_MS))
    await lookup.look_up("unknown", earlier, [earlier])
    assert log.from_the_start == 2
