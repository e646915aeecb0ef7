"""What an account may do: features, grants, and the segments of time that they make.

A *grant* gives or takes something of one feature over a span of time. A plan, a trial, an add-on, a contract and an
override all become grants, so one rule resolves them all (`aggregators.entitlements`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Final, NamedTuple


class FeatureType(StrEnum):
    """A flag is on or off. A limit is a quantity of usage, a seat limit a number of holders. A config is a JSON text
    that the application reads."""

    FLAG = "flag"
    LIMIT = "limit"
    SEAT = "seat"
    CONFIG = "config"


class Merge(StrEnum):
    """How the values of several plans become one: on if any is, the greatest, the sum, or that of the first plan."""

    ANY = "any"
    MAX = "max"
    SUM = "sum"
    FIRST = "first"


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


class Grant(NamedTuple):
    """One grant over `[starts_ms, ends_ms)`; `ends_ms` None is open.

    `source`: the id of its plan version, add-on, contract or override. `rank` orders plans, the highest first. `cause`:
    the event's id or the person that made it.
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
    stands instead of plans. `downgraded`: when the account lost its plan, because it did not pay.
    """

    grants: tuple[Grant, ...]
    plans: tuple[Span, ...] = ()
    replaced: tuple[Span, ...] = ()
    downgraded: tuple[Span, ...] = ()


class Resolved(NamedTuple):
    """The value of a feature, and the grants that made it, in the order in which they took part. `is_denied`: a grant
    denies the feature."""

    value: Value
    gives: tuple[Grant, ...] = ()
    is_denied: bool = False


class Segment(NamedTuple):
    """What holds from `from_ms` until the next segment: every feature of the catalog by name."""

    from_ms: int
    features: Mapping[str, Resolved]
