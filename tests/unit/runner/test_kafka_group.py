"""A member of a Kafka group that fetches no records, as a standby does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from pipeline.runner.runner import RunnerSettings
from tests.worlds.runner import client, until

SHIPPED_MS = 300_000
MONTH_S = 30 * 86_400


class Member(GroupCoordinator):  # type: ignore[misc]  # the library has no types
    """The library's own member; the network answers everything at once and assigns no partition."""

    def __init__(self, max_poll_interval_ms: float) -> None:
        state = SubscriptionState()
        state.subscribe({"usage.events"})
        self.joined = self.left = self.beats = self.tries = 0
        network = SimpleNamespace(cluster=SimpleNamespace(add_listener=lambda _listener: None))
        super().__init__(
            network, state, heartbeat_interval_ms=1, retry_backoff_ms=1,
            max_poll_interval_ms=max_poll_interval_ms, enable_auto_commit=False,
            assignors=[RoundRobinPartitionAssignor],
        )  # fmt: skip

    async def ensure_coordinator_known(self) -> None:
        self.coordinator_id = 0

    async def ensure_active_group(self, *arguments: Any) -> Any:
        assignment = await super().ensure_active_group(*arguments)
        self.tries += 1
        return assignment

    async def _do_rejoin_group(self, _subscription: object) -> bool:
        self.joined += 1
        self.generation += 1
        self.member_id = "standby"
        self._rejoin_needed_fut = asyncio.get_running_loop().create_future()
        self._subscription.assign_from_subscribed(())
        # Nobody has polled the member since.
        self._subscription._last_fetch_ended -= MONTH_S
        return True

    async def _do_heartbeat(self) -> bool:
        self.beats += 1
        return True

    async def _maybe_leave_group(self) -> None:
        self.left += 1
        await super()._maybe_leave_group()

    async def _send_req(self, _request: Any) -> Any:
        return SimpleNamespace(error_code=0)


@pytest.mark.parametrize(
    ("shipped", "joined", "left"), [(True, 1, 1), (False, 2, 0)], ids=["as shipped", "as set here"]
)
async def test_a_member_without_partitions_stays_and_joins_again(shipped: bool, joined: int, left: int) -> None:
    """A standby does not poll, so a poll limit would silently remove every standby, and none would ever take over."""
    consumer = await client(RunnerSettings("rollup"))
    member = Member(SHIPPED_MS if shipped else consumer._max_poll_interval_ms)
    await until(lambda: member.beats >= 3 or bool(member.left))
    # Another member dies.
    member.request_rejoin()
    await until(lambda: member.tries >= 2)

    assert (member.joined, member.left) == (joined, left)
    await member.close()
    await consumer.stop()


async def test_a_rebalance_does_not_wait_as_long_as_a_member_may_be_idle() -> None:
    """The group has a limit of its own: after that time a rebalance proceeds without members that hang."""
    consumer = await client(RunnerSettings("rollup", rebalance_timeout_s=7))

    assert consumer._rebalance_timeout_ms == 7_000
    await consumer.stop()
