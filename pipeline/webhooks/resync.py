"""Has every object that the side tables mirror fetched again, whatever was delivered before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from aggregators.billing_events import resync_record
from pipeline.webhooks.appending import append_events
from schemas.billing_events import ObjectKind, ObjectName, StripeObjects, Via
from schemas.log import Log
from schemas.side_tables import TABLE_OF, SideTables

# Customers come first: a customer's other rows are linked to an account through the customer.
ORDER: Final = (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE, ObjectKind.INVOICE)


async def resync(
    log: Log, objects: StripeObjects, tables: SideTables, run: str, now_s: int, customer: str = ""
) -> dict[ObjectKind, int]:
    """Append a resync record for each object that Stripe lists or the mirror has; returns how many, by kind.

    `run` names the resync: a second run of the same name changes nothing that the first one did. With `customer`, only
    the customer's objects. Stripe lists no deleted objects, so those in the mirror are asked for by their ids. Costs a
    call per 100 objects now, and one per object when the records are processed. Raises `Transient` and `Refused`;
    afterwards repeat it with the same `run`.
    """
    mirror = await tables.mirror()
    counts: dict[ObjectKind, int] = {}
    for kind in ORDER:
        seen: set[str] = set()
        values: list[bytes] = []
        async for name, owner in _listed(objects, kind):
            seen.add(name.id)
            if customer in ("", owner):
                values.append(resync_record(run, name, owner, now_s))
        for row in mirror[TABLE_OF[kind]]:
            identifier = str(row["id"])
            owner = identifier if kind is ObjectKind.CUSTOMER else str(row["customer_id"] or "")
            if identifier not in seen and customer in ("", owner):
                values.append(resync_record(run, ObjectName(kind, identifier), owner, now_s))
        counts[kind] = await append_events(log, values, Via.RESYNC)
    return counts


async def _listed(objects: StripeObjects, kind: ObjectKind) -> AsyncIterator[tuple[ObjectName, str]]:
    after = ""
    while page := await objects.names(kind, after):
        for name, owner in page:
            yield name, owner
        after = page[-1][0].id
