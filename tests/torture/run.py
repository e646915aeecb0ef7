"""One run: start everything, strike by the plan under load, come to rest, compare."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from demo.settled import unsettled_intents
from pipeline.local.kafka import LocalKafka
from pipeline.local.postgres import LocalPostgres
from pipeline.local.valkey import LocalValkey
from schemas.errors import Transient
from schemas.rollup import Checkpoint
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from tests.integration.deployment import EXIT_OPERATOR, Role
from tests.torture.billing import compare_billing, wait_for_billing
from tests.torture.clickhouse import DROPPED, LINES, REFUSED, LocalClickHouse
from tests.torture.compare import Compared, compare, reconciled
from tests.torture.deployment import PARTITIONS, REBUILD_S, REPORT_INTERVAL_MS, Tortured
from tests.torture.hours import pass_an_hour
from tests.torture.load import Load
from tests.torture.plan import Action, Strike, spared
from tests.torture.shop import Shop
from tests.torture.stripe import LocalStripe
from tests.torture.valkey_files import Copies, truncate

STRIPE_FAULTS_AT_ONCE: Final = 4
DELIVERY_FAULTS_AT_ONCE: Final = 8
DELAYED_S: Final = "0-8"
ADVANCE_EVERY: Final = 10
ADVANCE_S: Final = 240.0
AFTER_DAMAGE_S: Final = 240.0
STARTS_AGAIN_S: Final = 120.0
OTHERS_REFUSE_S: Final = 25.0

Say = Callable[[str], None]


class Services:
    """The broker, Valkey, ClickHouse's server, PostgreSQL and Stripe, in one folder."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.kafka = LocalKafka(folder / "kafka", progress=say)
        self.valkey_folder = folder / "valkey"
        self.valkey = LocalValkey(self.valkey_folder)
        self.clickhouse = LocalClickHouse(folder / "clickhouse")
        self.postgres = LocalPostgres(folder / "postgres")
        self.stripe = LocalStripe(folder / "stripe")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them, killed at the end."""
        every = (self.kafka, self.valkey, self.clickhouse, self.postgres, self.stripe)
        try:
            for service in every:
                await asyncio.to_thread(service.start)
            yield
        finally:
            for service in every:
                service.kill()


class Torture:
    """The strikes of one run and what came of them."""

    def __init__(
        self, deployment: Tortured, services: Services, load: Load, shop: Shop, folder: Path, say: Say
    ) -> None:
        self.deployment = deployment
        self.services = services
        self.load = load
        self.shop = shop
        self.copies = Copies(services.valkey_folder, folder / "copies")
        self.say = say
        self.struck: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.stripe_faults: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._told = 0
        self._pending: list[asyncio.Task[None]] = []

    async def strike_all(self, actions: list[Action]) -> None:
        """Everything in the plan, one after the other; services come back while it goes on."""
        for number, action in enumerate(actions, 1):
            await asyncio.sleep(action.wait_s)
            self.load.check()
            self.shop.check()
            await self._strike(number, len(actions), action)
            if number % ADVANCE_EVERY == 0:
                await self._advance()
        await self.services_back()

    async def services_back(self) -> None:
        """Return when every service that was killed runs again."""
        pending, self._pending = self._pending, []
        await asyncio.gather(*pending)

    async def _strike(self, number: int, of: int, action: Action) -> None:
        match action.strike:
            case Strike.WORKER | Strike.MIRROR:
                came = await self._kill_role(self.deployment.roles[action.target])
            case Strike.ARCHIVE | Strike.ROUTER | Strike.GATEWAY | Strike.SINK:
                came = await self._kill_role(self.deployment.roles[action.strike.value])
            case Strike.KAFKA:
                came = await self._outage(action, self.services.kafka.kill, self.services.kafka.start)
            case Strike.VALKEY:
                came = await self._outage(action, self.services.valkey.kill, self.services.valkey.start)
            case Strike.CLICKHOUSE:
                came = await self._outage(action, self.services.clickhouse.kill, self.services.clickhouse.start)
            case Strike.POSTGRES:
                came = await self._outage(action, self.services.postgres.kill, self.services.postgres.start)
            case Strike.VALKEY_TRUNCATED | Strike.VALKEY_EMPTIED | Strike.VALKEY_OLDER:
                came = await self._damage(action)
            case Strike.COPY:
                copy = await asyncio.to_thread(self.copies.take)
                came = f"copied to {copy.name}" if copy else "not copied: the files were being exchanged"
            case Strike.LEAVE:
                came = await self._leave(action)
            case Strike.STRIPE:
                await asyncio.to_thread(self.services.stripe.go_wrong, action.target, STRIPE_FAULTS_AT_ONCE)
                came = f"{STRIPE_FAULTS_AT_ONCE} times {action.target}"
            case Strike.READS:
                matching = {"method": "GET", "path": "/v1/subscriptions"}
                await asyncio.to_thread(
                    self.services.stripe.go_wrong, action.target, STRIPE_FAULTS_AT_ONCE, **matching
                )  # fmt: skip
                came = f"{STRIPE_FAULTS_AT_ONCE} times {action.target} of a subscription"
            case Strike.DELIVERIES:
                span = {"reason": DELAYED_S} if action.target.endswith("delayed") else {}
                await asyncio.to_thread(self.services.stripe.go_wrong, action.target, DELIVERY_FAULTS_AT_ONCE, **span)
                came = f"{DELIVERY_FAULTS_AT_ONCE} times {action.target}"
            case Strike.INSERTS:
                self.services.clickhouse.go_wrong(action.target)
                came = f"{action.target.count(DROPPED)} dropped after success, {action.target.count(REFUSED)} refused"
            case _:
                raise AssertionError(action)
        what = action.target if action.strike in (Strike.WORKER, Strike.MIRROR, Strike.LEAVE) else action.strike.value
        self.struck[action.strike.value] += 1
        total = self.kills.total()
        kill, self._told = f"kill {total}, " if total > self._told else "", total
        self.say(f"{number:3}/{of} {kill}{what}: {came}; {await self._standing()}")

    async def _standing(self) -> str:
        """How far the fold is, and what ended by itself since the last line."""
        ended = Counter[str]()
        for role in self.deployment.roles.values():
            by_itself = sum(code != -signal.SIGKILL for code in role.codes)
            ended[role.name] = by_itself - self._seen[role.name]
            self._seen[role.name] = by_itself
        others = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in ended.items() if count)
        text = f"ended by themselves: {others}" if others else "nobody else ended"
        with contextlib.suppress(Transient, TimeoutError):
            async with asyncio.timeout(2):
                folded, ends = await self.deployment.folded(), await self.deployment.ends()
                return f"{sum(folded.values())} of {sum(ends.values())} records folded; {text}"
        return text

    async def _kill_role(self, role: Role) -> str:
        """kill -9, as soon as there is a process; the keeper starts it again at once."""

        async def killed() -> bool:
            return role.kill()

        await self.deployment.until(killed, f"{role.name} to be there to be killed", STARTS_AGAIN_S)
        self.kills[role.name.partition("-")[0]] += 1
        return f"had been started {role.starts} times"

    async def _outage(self, action: Action, kill: Callable[[], object], start: Callable[[], None]) -> str:
        """kill -9 of a service, which is started again while the plan goes on."""
        # One service at a time: roles die beside it, and while it is away.
        await self.services_back()
        await asyncio.to_thread(kill)
        self.kills[action.strike.value] += 1

        async def back() -> None:
            await asyncio.sleep(action.down_s)
            await asyncio.to_thread(start)

        self._pending.append(asyncio.create_task(back()))
        return f"away for {action.down_s:.1f} s and its start"

    async def _leave(self, action: Action) -> str:
        """A worker goes in order, the others take its partitions, and it comes back."""
        role = self.deployment.roles[action.target]
        code = await role.stop()
        await asyncio.sleep(action.down_s)
        role.resume()
        return f"left with {code}, joined again {action.down_s:.1f} s later"

    async def _advance(self) -> None:
        """Let the fold and the archive come up to where the log is now: kills of processes that never get on prove
        little, and what they leave behind would have to be waited for at the end."""
        deployment = self.deployment
        await self.services_back()
        ends = await deployment.ends()
        clickhouse = open_clickhouse(deployment.settings.clickhouse_url)
        reader = ClickHouseReader(clickhouse)

        async def archived() -> bool:
            positions = await reader.archive_positions()
            return all(each in positions and positions[each].next_offset >= ends[each] for each in ends)

        try:
            await deployment.until(self._folded_to(ends), "what is in the log to be folded", ADVANCE_S)
            await deployment.until(archived, "what is in the log to be archived", ADVANCE_S)
        finally:
            await clickhouse.close()

    # Valkey's files

    async def _damage(self, action: Action) -> str:
        """kill -9 of Valkey, something happens to its folder, it comes back; then what the runbook says."""
        await self.services_back()
        deployment, valkey = self.deployment, self.services.valkey
        # Whoever reads Redis while it is emptied may give up, and is right.
        for role in deployment.roles.values():
            role.may_refuse = True
        before = await self._checkpoints()
        await asyncio.to_thread(valkey.kill)
        self.kills[Strike.VALKEY.value] += 1
        what = self._harm(action)
        await asyncio.to_thread(valkey.start)
        after = await self._checkpoints()
        offsets = [(before[each].next_offset, after[each].next_offset if each in after else 0) for each in before]
        back = sum(max(0, one - other) for one, other in offsets)
        # Nothing may be counted from zero, nor into rows that newer ones hide.
        refused = any(each not in after or after[each].generation < before[each].generation for each in before)
        came = await (self._refused(action) if refused else self._folded_again())
        for role in deployment.roles.values():
            role.may_refuse = False
        return f"{what}; positions went back by {back} records: {came}"

    async def _checkpoints(self) -> dict[int, Checkpoint]:
        """The checkpoint of every partition that has one, once Redis answers."""
        deployment, checkpoints = self.deployment, dict[int, Checkpoint]()

        async def read() -> bool:
            checkpoints.clear()
            for partition in deployment.partitions:
                checkpoint = await deployment.store.state.load_checkpoint(partition)
                if checkpoint is not None:
                    checkpoints[partition] = checkpoint
            return True

        await deployment.until(read, "Redis to be read")
        return checkpoints

    def _harm(self, action: Action) -> str:
        folder = self.services.valkey_folder
        if action.strike is Strike.VALKEY_OLDER:
            if not self.copies.taken:
                return "there is no older copy yet"
            return f"{self.copies.bring_back(action.share).name} of {len(self.copies.taken)} brought back"
        size, left = truncate(folder, 1.0 if action.strike is Strike.VALKEY_EMPTIED else action.share)
        return f"append-only file cut from {size} to {left} bytes"

    async def _folded_again(self) -> str:
        """The workers fold again from where the checkpoint went back to."""
        await self.deployment.until(self._folded_to(await self.deployment.ends()), "the log to be folded again")
        return "folded again from there"

    def _folded_to(self, ends: Mapping[int, int]) -> Callable[[], Awaitable[bool]]:
        async def folded() -> bool:
            positions = await self.deployment.folded()
            return all(positions[each] >= ends[each] for each in ends)

        return folded

    async def _refused(self, action: Action) -> str:
        """The workers give up and say what to do; then it is done."""
        deployment, workers = self.deployment, self.deployment.workers

        async def one_gave_up() -> bool:
            return any(role.lost for role in workers)

        async def all_gave_up() -> bool:
            return all(role.lost for role in workers)

        await deployment.until(one_gave_up, f"a worker to refuse what is left after: {action.strike}", AFTER_DAMAGE_S)
        # Where some partitions are well, not all need to: whoever gives up later is started again below.
        with contextlib.suppress(AssertionError):
            await deployment.until(all_gave_up, "the other workers to refuse too", OTHERS_REFUSE_S)
        lost = [role for role in workers if role.lost]
        for role in lost:
            assert role.codes[-1] == EXIT_OPERATOR, f"{role.name} ended with {role.codes}:\n{role.output()[-4000:]}"
            said = role.output().splitlines()[-1]
            assert "rebuild redis" in said, f"the remedy is not named: {said}"
        self.say(f"        {lost[0].name} refuses: {lost[0].output().splitlines()[-1]}")
        ends = await deployment.ends()
        killed = await self._rebuild(action)
        await self._folded_by_all(ends)
        return f"refused; `tidemark rebuild redis`{killed} made it whole"

    async def _rebuild(self, action: Action) -> str:
        """The remedy, killed once on the way."""
        arguments = ("rebuild", "redis", "--yes", "--no-reconcile")
        process = self.deployment.command(*arguments)
        killed = ""
        try:
            await asyncio.to_thread(process.wait, 1.5 + action.down_s)
        except subprocess.TimeoutExpired:
            process.kill()
            self.kills[Strike.REBUILD.value] += 1
            killed = ", killed once on its way,"
        for _ in range(3):
            process = self.deployment.command(*arguments)
            code = await asyncio.to_thread(process.wait, REBUILD_S)
            output = process.output()
            if code == 0:
                self.say(f"        {output.splitlines()[-1]}")
                return killed
            assert code == 1, output
        raise AssertionError(f"the rebuild did not end well in three runs:\n{output}")

    async def _folded_by_all(self, ends: Mapping[int, int]) -> None:
        """Start again who had given up, until everything up to `ends` is folded."""
        folded = self._folded_to(ends)

        async def resumed() -> bool:
            for role in self.deployment.workers:
                if role.lost:
                    role.resume()
            return await folded()

        await self.deployment.until(resumed, "the rebuilt view to be folded on", AFTER_DAMAGE_S)

    # Rest

    async def rest(self) -> None:
        """Return when all that was sent is confirmed, folded, archived, relayed, reported and settled at Stripe, and
        when Stripe's events are mirrored."""
        deployment = self.deployment
        self.services.clickhouse.be_well()
        self.say("    no more strikes; waiting for the customers' last changes and the producers' confirmations")
        await asyncio.gather(self.load.stop(), self._close_shop())
        self.say("    waiting for everything to be folded, judged, archived and relayed")
        await deployment.at_rest()
        boundary_ms = await pass_an_hour(deployment)
        self.say("    an hour goes by in the log; waiting for the last reports to be published and settled at Stripe")

        async def reported() -> bool:
            for partition in deployment.partitions:
                checkpoint, buckets = await deployment.store.reports.report_buckets(partition)
                if checkpoint is None or checkpoint.stream_time_ms < boundary_ms:
                    return False
                if any(bucket + REPORT_INTERVAL_MS <= boundary_ms for bucket in buckets):
                    return False
            return True

        async def settled() -> bool:
            return not await unsettled_intents(deployment.base.log, PARTITIONS)

        await deployment.until(reported, "the last report interval to be published")
        await deployment.until(settled, "every intent to be settled at Stripe")
        await deployment.at_rest()

    async def _close_shop(self) -> None:
        """Return when the customers have acted for the last time, and Stripe's events are mirrored."""
        await self.shop.stop()
        await asyncio.to_thread(self.services.stripe.be_well)
        await wait_for_billing(self.deployment, self.shop)


async def run(folder: Path, seed: int, actions: list[Action], say: Say) -> tuple[list[Compared], Torture]:
    """Run a plan; what was compared, and what was done."""
    services = Services(folder, say)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(services.running())
        deployment = await stack.enter_async_context(
            Tortured(
                folder / "one",
                services.kafka.url,
                services.valkey.url,
                services.clickhouse.url,
                services.postgres.url,
                services.stripe,
            )
        )
        await deployment.begin()
        stack.push_async_callback(deployment.tables.close)
        say(f"    {len(deployment.roles)} roles start on {folder}")
        await deployment.folded_to(dict.fromkeys(deployment.partitions, 3))
        load = Load(deployment, seed)
        shop = Shop(deployment, seed)
        torture = Torture(deployment, services, load, shop, folder, say)
        stack.callback(load.cancel)
        stack.callback(shop.cancel)
        load.start()
        shop.start()
        await torture.strike_all(actions)
        await torture.rest()
        say("    at rest; comparing")
        verdict = await reconciled(deployment)
        await deployment.stop_roles()
        results = await compare(deployment, load) + await compare_billing(deployment, shop)
        happened = (await asyncio.to_thread(services.stripe.state))["faults_happened"]
        torture.stripe_faults.update({f"Stripe: {kind}": count for kind, count in happened.items()})
        results += verdict.pairs
        wrong = [*load.wrong] if verdict.text == "equal" else [*load.wrong, f"the verdict is {verdict.text}"]
        results.append(Compared("what the producers and the reconciler said", 1 + len(load.wrong), len(wrong), wrong))
        missed = spared(actions, torture.kills.total(), services.clickhouse.faults()[LINES[DROPPED]], happened)
        results.append(Compared("what the plan was to show, and did", 4, len(missed), missed))
        return results, torture
