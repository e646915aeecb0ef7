"""What people acknowledged, as rows of the audit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, select

from schemas.acknowledgements import ACKNOWLEDGEMENT, Acknowledged
from schemas.errors import InvalidInput
from sinks.sql import audit as chain
from sinks.sql.intents import Run
from sinks.sql.queries import chunks, lock_accounts, save_heads
from sinks.sql.tables import audit

CAUSE: Final = "account acknowledge"
_ROW: Final = [audit.c.account, audit.c.entity_id, audit.c.actor, audit.c.reason, audit.c.at_ms]


class SqlAcknowledgements:
    """Implements `schemas.acknowledgements.Acknowledgements`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def acknowledge(self, account: str, what: str, actor: str, reason: str, now_ms: int) -> Acknowledged:
        chain.check_said(("what", what), ("by", actor), ("reason", reason))

        def body(connection: Connection) -> Acknowledged:
            heads = lock_accounts(connection, {account})
            if account not in heads:
                raise InvalidInput("account", f"{account!r} is not known")
            found = _found(connection, [account]).get(what)
            if found is not None:
                return found
            row = chain.next_row(
                heads[account], account, now_ms, actor=actor, cause=CAUSE, entity=(ACKNOWLEDGEMENT, what), before=None,
                after={"acknowledged": True}, reason=reason,
            )  # fmt: skip
            chain.append(connection, [(row, heads[account].audit_hash)])
            save_heads(connection, heads)
            return Acknowledged(account, what, actor, reason, now_ms)

        return await self._run(body)

    async def acknowledged(self, accounts: Collection[str]) -> Mapping[str, Acknowledged]:
        return await self._run(lambda connection: _found(connection, accounts))


def _found(connection: Connection, accounts: Collection[str]) -> dict[str, Acknowledged]:
    found: dict[str, Acknowledged] = {}
    for chunk in chunks(set(accounts)):
        wanted = select(*_ROW).where(audit.c.account.in_(chunk), audit.c.entity == ACKNOWLEDGEMENT)
        for row in connection.execute(wanted.order_by(audit.c.account, audit.c.seq)):
            found.setdefault(row.entity_id, Acknowledged(*row))
    return found
