"""By what nobody gets a second trial, and what is taken off for who buys before a trial ends."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from decimal import ROUND_DOWN, Decimal
from typing import Final

from schemas.catalog import Plan, PlanId
from schemas.clock import DAY_MS
from schemas.trials import TrialTerms

# These deliver to one mailbox whatever dots an address has.
_DOTLESS: Final = frozenset({"gmail.com", "googlemail.com"})
_CENT: Final = Decimal("0.01")


def unaliased(email: str) -> str:
    """The mailbox of an address: in small letters, without a `+tag`, and without dots where they mean nothing. "" for
    what is no address."""
    local, at, domain = email.strip().casefold().rpartition("@")
    local = local.partition("+")[0]
    if domain in _DOTLESS:
        local, domain = local.replace(".", ""), "gmail.com"
    return f"{local}@{domain}" if local and at and domain else ""


def trial_keys(
    secret: bytes, terms: TrialTerms, *, account: str, customer: str, email: str, card: str
) -> Mapping[str, str]:
    """The hashes of what the catalog allows one trial for, by kind. `card`: a fingerprint, "" if none is known. An
    account that is linked to another customer, or a customer to another account, gets no second one."""
    mailbox = unaliased(email)
    values = {"account": account, "customer": customer, "email": mailbox, "card": card}
    values["domain"] = mailbox.rpartition("@")[2]
    kinds = set(terms.once_per) | ({"customer"} if "account" in terms.once_per else set())
    return {kind: key_hash(secret, kind, values[kind]) for kind in sorted(kinds) if values[kind]}


def key_hash(secret: bytes, kind: str, value: str) -> str:
    """A keyed hash, from which the value is not found without the deployment's secret."""
    return hmac.new(secret, f"trial {kind} {value}".encode(), hashlib.sha256).hexdigest()


def terms_of(plan: PlanId, sold: Plan) -> TrialTerms | None:
    """The terms of a plan's trial."""
    if sold.trial is None:
        return None
    trial = sold.trial
    return TrialTerms(
        str(plan), trial.family, trial.days, trial.once_per, trial.ends.no_card, trial.ends.card,
        trial.card == "required", trial.repeated_card,
    )  # fmt: skip


def early_percent(sold: Plan | None, start_ms: int, end_ms: int, now_ms: int) -> str:
    """The percentage that is taken off once if a trial ends now: the highest one times the share of days that are
    left, in hundredths. "" if nothing is. A day that has begun counts as left."""
    if sold is None or sold.trial is None or sold.trial.early_discount is None or not start_ms < end_ms:
        return ""
    days, left = -((start_ms - end_ms) // DAY_MS), -((now_ms - end_ms) // DAY_MS)
    share = Decimal(sold.trial.early_discount.max_percent) * min(max(left, 0), days) / days
    percent = share.quantize(_CENT, ROUND_DOWN).normalize()
    return f"{percent:f}" if percent > 0 else ""
