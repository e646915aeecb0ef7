"""Finds the payer of an intent in the live view."""

from __future__ import annotations

from aggregators.bindings import customer_at, is_replaced
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from schemas.errors import Transient
from schemas.live_view import AccountDirectory
from schemas.periods import Billing
from schemas.reports import Intent, Payer


class BindingResolver:
    """Finds the payer by the account's bindings in the live view. See `schemas.reports.CustomerResolver`."""

    def __init__(self, accounts: AccountDirectory, partitions: int) -> None:
        self._accounts = accounts
        self._partitions = partitions

    async def __call__(self, intent: Intent, instant_ms: int) -> Payer | None:
        partition = partition_of(intent.account, self._partitions)
        checkpoint, states = await self._accounts.accounts(partition, [intent.account])
        state = states[intent.account]
        # An intent is published after its bucket closed. A live view behind that stream time is an older copy or a
        # rebuild in progress, and may lack bindings.
        if checkpoint is None or checkpoint.stream_time_ms < intent.bucket_end_ms:
            raise Transient(
                f"partition {partition}: the live view does not reach the end of the report's bucket: wait until the "
                "worker has folded again, or build it again with `tidemark rebuild redis`"
            )
        if is_replaced(state, intent.period_start_ms, intent.bucket_start_ms):
            return None
        period_end_ms = period_at(state, intent.period_start_ms).end_ms
        customer = customer_at(state, instant_ms)
        if customer is None:
            return Payer(Billing.UNMAPPED, "", period_end_ms)
        return Payer(customer.billing, customer.stripe_customer, period_end_ms)
