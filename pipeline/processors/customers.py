"""Who pays for an account, as the rollup knows it."""

from __future__ import annotations

from aggregators.bindings import customer_at, is_replaced
from aggregators.partitioning import partition_of
from schemas.periods import Billing
from schemas.reports import Intent
from schemas.rollup import RollupStore


class BindingResolver:
    """Who pays for an account, by its bindings in the live view. See `schemas.sink.CustomerResolver`."""

    def __init__(self, store: RollupStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def __call__(self, intent: Intent, instant_ms: int) -> tuple[Billing, str] | None:
        state = await self._store.account(partition_of(intent.account, self._partitions), intent.account)
        if is_replaced(state, intent.period_start_ms, intent.bucket_start_ms):
            return None
        customer = customer_at(state, instant_ms)
        return (customer.billing, customer.stripe_customer) if customer else (Billing.UNMAPPED, "")
