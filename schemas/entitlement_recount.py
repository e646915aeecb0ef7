"""The second opinion on entitlements: computed again from the mirror, and what the newest kept version says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class RecountedFeature(NamedTuple):
    """One feature of one account at one instant, as a recount finds it and as the newest version has it.

    Values are text: `true` or `false`, a number, `unlimited`, or the JSON of a config. `expected` is None if no catalog
    knows the feature, `found` if the version lacks the feature; without a version `version` is 0. `is_stale`: something
    happened to the account since its version was computed. `is_kept`: the account has a subscription with prices of
    nobody, so it may keep what it had (`Entitlements.renew`).
    """

    account: str
    feature: str
    version: int
    expected: str | None
    found: str | None
    is_stale: bool
    is_kept: bool


class LinkedCustomer(NamedTuple):
    """An account's customer at an instant. `changed_ms`: when its newest version was computed. `is_paused`: the
    customer has a subscription that is paused."""

    account: str
    customer: str
    changed_ms: int
    is_paused: bool


class KeptFlag(NamedTuple):
    """A flag with a feature at Stripe, of which `key` is the lookup key, as the newest version of an account has it.

    `is_bought`: a plan or an add-on gives it. `is_decided`: a person granted, set or denied it.
    """

    account: str
    key: str
    is_on: bool
    is_bought: bool
    is_decided: bool


class EntitlementRecount(Protocol):
    """Recounts entitlements. Every call may raise `Transient`, and `ValueError` if a stored text cannot be read."""

    async def accounts(self, after: str = "", limit: int = 200) -> Sequence[str]:
        """The next accounts behind `after`, in the store's order; none at the end, and none without a catalog."""
        ...

    async def recount(self, accounts: Sequence[str], now_ms: int) -> Sequence[RecountedFeature]:
        """Every feature of the accounts at an instant, from one snapshot of the tables."""
        ...

    async def has_stripe_features(self) -> bool:
        """Whether the active catalog has a flag with a feature at Stripe."""
        ...

    async def linked(self, now_ms: int, after: str = "", limit: int = 200) -> Sequence[LinkedCustomer]:
        """The next accounts behind `after` that have a customer at an instant, and a version."""
        ...

    async def flags(self, accounts: Sequence[str], now_ms: int) -> Sequence[KeptFlag]:
        """The flags of the accounts with a feature at Stripe, at an instant, by account."""
        ...
