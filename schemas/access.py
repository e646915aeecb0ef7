"""The answer to "may this account do this?": its fields and the closed list of reasons."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from schemas.entitlements import Grant, Unlimited
from schemas.upgrades import Money


class Reason(StrEnum):
    """Why a check allows or denies. The list is closed: an application may branch on it.

    - `within_limit`, `unlimited`: the limit or the seats have room.
    - `included`: a plan, an add-on, a contract or an override gives the feature, or the base price covers the usage.
    - `overage_billed`: allowed, and billed beside the base price.
    - `soft_limit_passed`: allowed, although the limit is passed.
    - `trial`: a plan gives the feature within a trial, or the trial itself does.
    - `payment_failed_grace`: allowed, although a payment failed.
    - `not_in_plan`: nothing gives the feature.
    - `limit_reached`, `seats_full`: the limit or the seats have no room for the quantity.
    - `spend_cap_reached`: the overage would cost more than the cap of the plan.
    - `credits_exhausted`: no credits are left that pay for the quantity, and the catalog refuses usage beyond them.
    - `trial_over`: the feature was given within a trial, which has ended.
    - `downgraded_unpaid`: the plan gives the feature, and does not hold because the account did not pay.
    - `denied_by_override`: a person took the feature away.
    - `no_account`: nobody knows the account, and the default plan does not give the feature.
    - `fallback_allow`, `fallback_deny`: a store does not answer, and the catalog says what then.
    """

    WITHIN_LIMIT = "within_limit"
    UNLIMITED = "unlimited"
    INCLUDED = "included"
    OVERAGE_BILLED = "overage_billed"
    SOFT_LIMIT_PASSED = "soft_limit_passed"
    TRIAL = "trial"
    PAYMENT_FAILED_GRACE = "payment_failed_grace"
    NOT_IN_PLAN = "not_in_plan"
    LIMIT_REACHED = "limit_reached"
    SEATS_FULL = "seats_full"
    SPEND_CAP_REACHED = "spend_cap_reached"
    CREDITS_EXHAUSTED = "credits_exhausted"
    TRIAL_OVER = "trial_over"
    DOWNGRADED_UNPAID = "downgraded_unpaid"
    DENIED_BY_OVERRIDE = "denied_by_override"
    NO_ACCOUNT = "no_account"
    FALLBACK_ALLOW = "fallback_allow"
    FALLBACK_DENY = "fallback_deny"


class Usage(NamedTuple):
    """What of a limit or of seats is taken, in units: `used` is counted, `held` is promised to others."""

    used: Decimal = Decimal(0)
    held: Decimal = Decimal(0)


class Spending(NamedTuple):
    """What the overage of a period costs so far, and what it may cost at most; `cap` is None without a cap."""

    so_far: Money
    cap: Money | None


class Standing(NamedTuple):
    """What the account went through, as far as it explains an answer.

    `before`: the grants of the feature that no longer hold, because a trial ended or the account was downgraded.
    `is_downgraded`, `in_grace`: the account did not pay, and lost its plan or has it still. `is_known`: somebody made
    the account.
    """

    before: tuple[Grant, ...] = ()
    is_downgraded: bool = False
    in_grace: bool = False
    is_known: bool = True


class Decision(NamedTuple):
    """Whether it is allowed, and why. `limit`, `used`, `held` and `remaining` are None for flags and configs;
    `overage` is the quantity beyond what is included, 0 without an included quantity. `value` is a config's JSON.
    `spending`: what the overage costs; None if that is not known, or nothing is beyond."""

    allowed: bool
    reason: Reason
    gives: tuple[Grant, ...] = ()
    limit: Decimal | Unlimited | None = None
    used: Decimal | None = None
    held: Decimal | None = None
    remaining: Decimal | Unlimited | None = None
    included: Decimal | None = None
    overage: Decimal = Decimal(0)
    value: str | None = None
    spending: Spending | None = None
