"""What an account may do: features, grants, and the segments of time that they make.

A *grant* gives or takes something of one feature over a span of time. A plan, a trial, an add-on, a contract and an
override all become grants, so one rule resolves them all (`aggregators.entitlements`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.catalog import Dunning, FeatureType, Merge
from schemas.side_tables import Link, Row
from schemas.upgrades import Billed


class Unlimited(Enum):
    """The top of limits and seats."""

    UNLIMITED = "unlimited"


UNLIMITED: Final = Unlimited.UNLIMITED
# A flag, a quantity of a limit or seats, or the JSON text of a config.
Value = bool | Decimal | Unlimited | str


class Feature(NamedTuple):
    """A feature of the catalog."""

    name: str
    type: FeatureType
    merge: Merge


class SourceKind(StrEnum):
    """Where a grant comes from. `FALLBACK` is the plan of accounts that did not pay."""

    DEFAULT = "default"
    PLAN = "plan"
    FALLBACK = "fallback"
    TRIAL = "trial"
    ADDON = "addon"
    PROMOTION = "promotion"
    CONTRACT = "contract"
    OVERRIDE = "override"


class Operation(StrEnum):
    """What a grant does with a feature's value. `DENY` takes the feature away, whatever else is granted."""

    SET = "set"
    ADD = "add"
    AT_LEAST = "at_least"
    AT_MOST = "at_most"
    DENY = "deny"


# Reasons of what a subscription gives: its trial runs, or a payment failed and it gives still.
IN_TRIAL: Final = "in trial"
IN_GRACE: Final = "in grace"


class Grant(NamedTuple):
    """One grant over `[starts_ms, ends_ms)`; `ends_ms` None is open.

    `source`: the id of its plan version, add-on, contract or override. `rank` orders plans, the highest first. `cause`:
    the subscription or the person that made it. `reason`: why a person made it, or `IN_TRIAL` or `IN_GRACE`.
    """

    feature: str
    kind: SourceKind
    source: str
    operation: Operation
    value: Value
    starts_ms: int
    ends_ms: int | None = None
    rank: int = 0
    cause: str = ""
    reason: str = ""


class Span(NamedTuple):
    """A span of time `[starts_ms, ends_ms)`; `ends_ms` None is open."""

    starts_ms: int
    ends_ms: int | None = None

    def contains(self, instant_ms: int) -> bool:
        """Whether the instant is in the span."""
        return self.starts_ms <= instant_ms and (self.ends_ms is None or instant_ms < self.ends_ms)


class Entitled(NamedTuple):
    """All that decides what one account may do. The order of grants and spans does not matter.

    `plans`: when a paid plan or a trial is in force; at other times the default plan gives. `replaced`: when a contract
    stands instead of plans. `downgraded`: when the account lost its plan, because it did not pay; whoever
    `keeps_addons` keeps what add-ons give then.
    """

    grants: tuple[Grant, ...]
    plans: tuple[Span, ...] = ()
    replaced: tuple[Span, ...] = ()
    downgraded: tuple[Span, ...] = ()
    keeps_addons: bool = False


class Resolved(NamedTuple):
    """The value of a feature, and the grants that made it, in the order in which they took part. `is_denied`: a grant
    denies the feature. `lost`: what the account had bought, and does not have because it did not pay."""

    value: Value
    gives: tuple[Grant, ...] = ()
    is_denied: bool = False
    lost: tuple[Grant, ...] = ()


class Segment(NamedTuple):
    """What holds from `from_ms` until the next segment: every feature of the catalog by name."""

    from_ms: int
    features: Mapping[str, Resolved]


class Override(NamedTuple):
    """A grant that a person made, with the number of its account. `revoked_ms`: when somebody took it back, who
    `revoked_by` says, and `revoked_reason` why; both are "" where only what is in force matters."""

    account: str
    number: int
    grant: Grant
    actor: str
    made_ms: int
    revoked_ms: int | None = None
    revoked_by: str = ""
    revoked_reason: str = ""


class EntitlementVersion(NamedTuple):
    """What an account may do, as of `computed_ms`. Versions of an account only rise, and each is kept.

    `segments` is the text of `aggregators.entitlement_codec`. `cause`: the last thing that happened to the account
    before, as the audit says it.
    """

    account: str
    version: int
    computed_ms: int
    inputs_sha256: str
    segments: str
    cause: str


class Renewed(NamedTuple):
    """That an account got a new version of its entitlements. `number`: of all versions of all accounts."""

    account: str
    version: int
    number: int


class Recomputed(NamedTuple):
    """What became of one account: whether it got a new version, and `Computed.unreadable`."""

    is_new: bool
    unreadable: Sequence[str] = ()


class Computed(NamedTuple):
    """What `Resolver` found: the hash of the inputs and the text of the segments. `unreadable`: subscriptions that have
    prices that the catalog never made, and none of a plan, so the answer may lack what they give."""

    inputs_sha256: str
    segments: str
    unreadable: tuple[str, ...]


class Resolver(Protocol):
    """Resolves an account's entitlements; a pure function that the store calls within a transaction."""

    def __call__(
        self, links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], people: Sequence[Grant], since_ms: int, /
    ) -> Computed:
        """What follows from the account's links, the mirror's rows of its customers, and what people granted. The
        segments are exact from `since_ms` on."""
        ...


class Entitlements(Protocol):
    """The store of overrides and of the versions of entitlements. Every call may raise `Transient`."""

    async def stale(self, limit: int = 500, after: str = "") -> Sequence[str]:
        """Accounts to which something happened since their entitlements were computed, in the store's order, behind
        the account `after`."""
        ...

    async def due(self, now_ms: int, limit: int = 500) -> Sequence[str]:
        """Accounts with a dunning case that time alone moves on now; an account may be named twice."""
        ...

    async def renew(
        self, account: str, catalog_sha256: str, resolver: Resolver, now_ms: int, policy: Dunning | None = None
    ) -> Recomputed:
        """Compute the entitlements of one account again, and keep a new version if the inputs, or what follows from
        them, differ. With `policy`, the account's dunning cases are opened and moved before, in the same transaction.

        If a subscription that gave something became unreadable, what the account has stays: a riddle takes nothing
        away. One that never gave anything holds nothing back. Raises `Fenced` if another catalog is active than that
        of `resolver`. Repeatable.
        """
        ...

    async def recompute(self, account: str = "") -> int:
        """Have one account's entitlements, or those of all, computed again; returns of how many accounts."""
        ...

    async def latest(self, accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        """The newest version of each account that has one."""
        ...

    async def last_number(self) -> int:
        """The highest number of a version, 0 without any. One that is written now may get a lower one."""
        ...

    async def changed(self, after: int, limit: int = 10_000) -> Sequence[Renewed]:
        """The versions whose numbers are higher, by number."""
        ...

    async def billed(self, account: str, now_ms: int) -> Billed:
        """What an account pays now, by the mirror; nothing if nobody knows the account."""
        ...

    async def version_at(self, account: str, instant_ms: int) -> EntitlementVersion | None:
        """The version that was in force at an instant, or None."""
        ...

    async def override(self, account: str, grant: Grant, actor: str, now_ms: int) -> Override:
        """Add a grant of a person, with its audit row. The account is made if it is new.

        An equal grant that is in force changes nothing. Raises `InvalidInput` without an actor or a reason.
        """
        ...

    async def grant(
        self, account: str, grants: Sequence[Grant], actor: str, now_ms: int, *, replaces: bool = False
    ) -> Sequence[Override]:
        """Add grants of a person, and their audit rows, in one transaction. With `replaces`, the other overrides of the
        same features are taken back in it. The account is made if it is new.

        A grant that is in force with the same terms is not made again, whatever its source and its start. Raises
        `InvalidInput` without an actor or a reason.
        """
        ...

    async def knows(self, account: str) -> bool:
        """Whether the account was ever linked or granted something."""
        ...

    async def revoke(self, account: str, number: int, actor: str, reason: str, now_ms: int) -> Override:
        """Take a person's grant back, with an audit row. The same again changes nothing. Raises `InvalidInput` if there
        is no such grant."""
        ...

    async def overrides(self, account: str) -> Sequence[Override]:
        """All grants of people, also those that were taken back, by number, with who took them back and why."""
        ...
