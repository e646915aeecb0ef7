"""The notifier role: finds what accounts must hear of, and delivers it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from aggregators.notices import secret_bytes
from pipeline.clock import SystemClock
from pipeline.http.page_links import LIFE_S_MAX, PageSecrets, page_link
from pipeline.http.serving import Readiness, ops_app, serving, stop_event
from pipeline.http.watched_file import WatchedFile
from pipeline.http.webhooks import load_secrets
from pipeline.metrics import Metrics
from pipeline.notices.sending import Sending
from pipeline.notices.sweep import Sweep
from pipeline.notices.terms import Terms
from pipeline.notices.truth import Truth
from pipeline.open import open_base, open_live_view, open_side_tables
from pipeline.roles.base import relaying
from pipeline.settings import Settings
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput
from schemas.notices import Channel, ChannelName, NoticeOutbox
from sinks.notices.file import FileChannel
from sinks.notices.mail import MailChannel, mail_server
from sinks.notices.webhook import WebhookChannel

SEND_INTERVAL_S: Final = 1.0
COUNT_INTERVAL_S: Final = 15.0
OFF: Final = "off"
FILE: Final = "file://"


async def run_notifier(settings: Settings) -> None:
    """Sweep and send until stopped. Several processes do no harm: they share the outbox."""
    base = await open_base(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        channels = await stack.enter_async_context(open_channels(settings, tables.notices, base.clock))
        terms = Terms(tables.catalog, tables.entitlements, base.clock)
        partitions, names = base.genesis.partitions, tuple(channels)
        log_id = base.genesis.log_id
        truth = Truth(terms, view.accounts, view.totals, tables.notices, base.clock, log_id, partitions)
        told = [name for name in names if name is not ChannelName.FINANCE]
        sweep = Sweep(terms, view.accounts, view.totals, tables.notices, told, base.clock, log_id, partitions)
        sending = Sending(tables.notices, truth, channels, base.clock)
        await _run(settings, NotifierLoops(sweep, sending, tables.notices, base.clock), names)


class NotifierLoops:
    """One turn of each thing that the role does again and again, with the metrics of what it did."""

    def __init__(self, sweep: Sweep, sending: Sending, outbox: NoticeOutbox, clock: Clock) -> None:
        self._sweep = sweep
        self._sending = sending
        self._outbox = outbox
        self._clock = clock
        self._shown: Counter[tuple[ChannelName, str]] = Counter()
        self.metrics = Metrics()

    async def sweep(self) -> None:
        """Look at every total once."""
        began_s = asyncio.get_running_loop().time()
        swept = await self._sweep.turn()
        self.metrics.set("tidemark_notices_sweep_duration_seconds", asyncio.get_running_loop().time() - began_s)
        self.metrics.set("tidemark_notices_reached", swept.reached)
        if swept.is_whole:
            self.metrics.set("tidemark_notices_swept_seconds", self._clock.now_ms() / SECOND_MS)

    async def send(self, channel: ChannelName) -> None:
        """Send all that is due by one channel. What waits for a channel that is not set becomes obsolete."""
        while await self._sending.turn(channel):
            pass

    async def count(self) -> None:
        """Set the gauges of the outbox; a scrape cannot wait for SQL."""
        counts, now_ms = await self._outbox.counts(), self._clock.now_ms()
        self.metrics.set("tidemark_notices_waiting", counts.waiting)
        self.metrics.set("tidemark_notices_dead", counts.dead)
        oldest_ms = now_ms if counts.oldest_ms is None else counts.oldest_ms
        self.metrics.set("tidemark_notices_oldest_age_seconds", max(0, now_ms - oldest_ms) / SECOND_MS)

    def refresh(self) -> None:
        """Count the attempts since the last scrape."""
        results = Counter(self._sending.results)
        for (channel, result), attempts in (results - self._shown).items():
            self.metrics.add("tidemark_notice_attempts_total", attempts, channel=channel.value, result=result)
        self._shown = results

    def failed(self) -> None:
        """Count a turn that a store did not let end."""
        self.metrics.add("tidemark_relay_failures_total", view="notices")


async def _run(settings: Settings, loops: NotifierLoops, channels: tuple[ChannelName, ...]) -> None:
    stop = stop_event()

    async def readiness() -> Readiness:
        return Readiness(True, {"channels": [name.value for name in channels]})

    def repeated(turn: Callable[[], Awaitable[None]], interval_s: float) -> asyncio.Task[None]:
        # `relaying` works through partitions; the outbox is one for all.
        return asyncio.create_task(relaying(lambda: {0}, lambda _: turn(), interval_s, on_failure=loops.failed))

    app = ops_app(loops.metrics, readiness, loops.refresh)
    async with serving(app, settings.metrics_host, settings.metrics_port):
        tasks = [
            repeated(loops.sweep, settings.notices_sweep_s),
            *(
                repeated(partial(loops.send, name), SEND_INTERVAL_S if name in channels else COUNT_INTERVAL_S)
                for name in ChannelName
            ),
            repeated(loops.count, COUNT_INTERVAL_S),
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for each in (*tasks, stopping):
                each.cancel()
            await asyncio.wait({*tasks, stopping})


@contextlib.asynccontextmanager
async def open_channels(
    settings: Settings, outbox: NoticeOutbox, clock: Clock
) -> AsyncIterator[Mapping[ChannelName, Channel]]:
    """The channels that are set. Raises `InvalidInput` if an address or a secret is wrong."""
    channels: dict[ChannelName, Channel] = {}
    async with contextlib.AsyncExitStack() as stack:
        mail_url = settings.mail_url.get_secret_value()
        if mail_url.startswith(FILE):
            channels[ChannelName.FILE] = FileChannel(Path(unquote(urlsplit(mail_url).path)))
        elif mail_url != OFF:

            async def address(account: str) -> str:
                return await outbox.address(account, clock.now_ms())

            mail = MailChannel(mail_server(mail_url), address, page_of(settings, clock))
            stack.callback(mail.close)
            channels[ChannelName.MAIL] = mail
        webhooks = {
            ChannelName.WEBHOOK: settings.notices_webhook_url, ChannelName.FINANCE: settings.journal_webhook_url,
        }  # fmt: skip
        for name, url in webhooks.items():
            if url:
                channels[name] = await stack.enter_async_context(_webhook(settings, url))
        yield channels


def _webhook(settings: Settings, url: str) -> WebhookChannel:
    """The channel to an address. Raises `InvalidInput` without a file of secrets."""
    if settings.notices_webhook_secrets is None:
        raise InvalidInput("TIDEMARK_NOTICES_WEBHOOK_SECRETS", "is not set; name the file of signing secrets")
    keys = WatchedFile("TIDEMARK_NOTICES_WEBHOOK_SECRETS", settings.notices_webhook_secrets, load_keys)
    # The receiver compares the time with its own clock, also if ours is that of a simulation.
    return WebhookChannel(url, keys.content, lambda: SystemClock().now_ms() // SECOND_MS)


def page_of(settings: Settings, clock: Clock) -> Callable[[str], str]:
    """Makes links to the pages of accounts, which end after `LIFE_S_MAX`. A link is "" if no pages are set, or if none
    can be made for an account. Raises `InvalidInput` if the file of secrets is malformed."""
    if not settings.page_url or settings.page_secrets is None:
        return lambda _account: ""
    secrets = PageSecrets(settings)

    def page(account: str) -> str:
        # Stripe's page of the invoice is linked instead.
        with contextlib.suppress(InvalidInput):
            return page_link(settings, secrets(), account, LIFE_S_MAX, clock.now_ms()).url
        return ""

    return page


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The signing keys of a file of secrets. Raises `InvalidInput`."""
    secrets = load_secrets(path)
    try:
        return tuple(secret_bytes(secret) for secret in secrets)
    except ValueError as error:
        message = f"{path}: a secret is whsec_ and the base64 of 24 bytes or more: {error}"
        raise InvalidInput("notices_webhook_secrets", message) from error
