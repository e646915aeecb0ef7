"""What an account has left of its credits, as people see it: by pool and grant, ours and those at Stripe."""

from __future__ import annotations

from typing import NamedTuple

from schemas.packs import Purchase, SoldPack


class GrantBalance(NamedTuple):
    """A grant as a customer sees it. `id` is the ledger's, or the key of a grant at Stripe.

    `remaining` None: not known. `state`: `open`, `coming` before it begins, or `ordered` before the mirror has seen it.
    `by_us`: whether Tidemark made it.
    """

    id: str
    category: str
    credits: int
    remaining: int | None
    priority: int
    effective_ms: int
    expires_ms: int | None
    state: str
    by_us: bool = True


class CreditsOfPool(NamedTuple):
    """The credits of one pool. `exponent`: that of the currency that `unit` names in mode `stripe`, else 0.

    `left` None: not known. `is_estimate`: Stripe has the credits, and said so at `as_of_ms`. `owed` is paid by the next
    grant. `undrawn` and `held` are taken off `left` already. `top_up_below`: so few left have a pack bought by itself.
    """

    pool: str
    unit: str
    exponent: int
    mode: str
    overdraft: str
    left: int | None
    is_estimate: bool
    as_of_ms: int | None
    owed: int
    undrawn: int
    held: int
    grants: tuple[GrantBalance, ...]
    packs: tuple[SoldPack, ...]
    top_up_below: int | None

    @property
    def has_any(self) -> bool:
        """Whether the account has or had credits here."""
        return bool(self.grants) or self.owed > 0


class AccountBalance(NamedTuple):
    """All pools of an account at an instant, its newest purchases, and what counts up to `complete_up_to_ms`."""

    account: str
    at_ms: int
    complete_up_to_ms: int | None
    pools: tuple[CreditsOfPool, ...]
    purchases: tuple[Purchase, ...]
