"""Section (n) of `make bench`: records of one event each, as producers without the emitter write them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.broker import Bench, Feed
from benchmarks.figures import Figure, Report
from benchmarks.services import SECRET, Services
from benchmarks.traffic import Traffic
from pipeline.open import apply_meter_set, open_base, read_meter_set
from pipeline.rollup.processor import ROLLUP_GROUP
from pipeline.settings import load_settings
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC

TARGET_EVENTS_PER_S: Final = 40_000
SECTION: Final = "(n) Records of one event each"


async def measure_single_events(
    events: int, accounts: int, now_ms: int, folder: Path, report: Report, say: Callable[[str], None]
) -> None:
    """Measure router and worker together on the inbox, and a worker alone on such records in `usage.events`."""
    for topic in (INBOX_TOPIC, EVENTS_TOPIC):
        path = folder / topic
        path.mkdir()
        with Services(path, lambda _message: None) as services:
            base = await open_base(load_settings(log_url=services.kafka.url, secret=SECRET))
            await apply_meter_set(base, read_meter_set(None))
            feed = Feed(services.kafka.url.removeprefix("kafka://"), Traffic(accounts, base.genesis.partitions, now_ms))
            say(f"Producing {events:,} records of one event to {topic}")
            feed.send(events, topic, single=True)
            report.add(*await _counted(Bench(services, base, feed, report, say), topic))
            feed.close()
            await base.log.close()


async def _counted(bench: Bench, topic: str) -> list[Figure]:
    """Count everything with a worker, behind a router if the events are in the inbox."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        roles = ["router", "worker"] if topic == INBOX_TOPIC else ["worker"]
        bench.say(f"{' and '.join(roles)} over single events")
        worker = stack.enter_context(bench.role("worker", stores))
        # The router would have forwarded most events before the worker counts the first one.
        await bench.joined(ROLLUP_GROUP, worker)
        router = stack.enter_context(bench.role("router", stores)) if "router" in roles else None
        rate = await bench.worker(stores, worker, router)
        await bench.verify(stores, f"single events through {' and '.join(roles)}", archive=False)
    per_s = rate.events_per_s
    verdict = "met" if per_s >= TARGET_EVENTS_PER_S else "missed"
    figures = [
        Figure(SECTION, f"to {topic}", per_s, "events/s", 1e6 / per_s, f"target {TARGET_EVENTS_PER_S:,}", verdict),
        Figure(SECTION, "  processor time of the worker", rate.cpu_us, "µs", rate.cpu_us),
    ]
    if router:
        figures.append(Figure(SECTION, "  processor time of the router", rate.beside_us, "µs", rate.beside_us))
    return figures
