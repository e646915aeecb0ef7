"""What a person has seen and decided to leave as it is: the thing, who, and why. The audit keeps it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple, Protocol

# The entity of the audit row.
ACKNOWLEDGEMENT: Final = "acknowledgement"


class Acknowledged(NamedTuple):
    """Who acknowledged a thing of an account, when, and why."""

    account: str
    what: str
    actor: str
    reason: str
    at_ms: int


class Acknowledgements(Protocol):
    """Kept in the audit. Every call may raise `Transient`."""

    async def acknowledge(self, account: str, what: str, actor: str, reason: str, now_ms: int) -> Acknowledged:
        """Note that a person leaves a thing as it is: a report, a subscription, an invoice, by its id. The same thing
        again changes nothing, and the first one is returned. Raises `InvalidInput` for an unknown account, or without
        who and why."""
        ...

    async def acknowledged(self, accounts: Collection[str]) -> Mapping[str, Acknowledged]:
        """What was acknowledged of accounts, by the id of the thing. Reads the accounts' whole audit."""
        ...
