"""Who pays for an account, as the rollup knows it."""

from __future__ import annotations

from aggregators.partitioning import partition_of
from aggregators.periods import customer_at
from schemas.periods import Billing
from schemas.rollup import RollupStore


class BindingResolver:
    """Who pays for an account, by its bindings in the live view. See `schemas.sink.CustomerResolver`."""

    def __init__(self, store: RollupStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def __call__(self, account: str, instant_ms: int) -> tuple[Billing, str]:
        state = await self._store.account(partition_of(account, self._partitions), account)
        customer = customer_at(state, instant_ms)
        return (customer.billing, customer.stripe_customer) if customer else (Billing.UNMAPPED, "")
