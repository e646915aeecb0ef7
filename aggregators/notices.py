"""Which notices follow from what an account is entitled to and has used, and the bytes that are delivered of each."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from hashlib import blake2b, sha256
from typing import Final, NamedTuple

import msgspec

from aggregators.account_grants import INCLUDED
from aggregators.dunning import HARD_DECLINES
from aggregators.instants import format_instant_ms
from schemas.catalog import Dunning, Feature
from schemas.clock import DAY_MS
from schemas.entitlements import Segment
from schemas.meters import Meter
from schemas.notices import Notice, NoticeKind, StripeFact
from schemas.periods import Period

# Enough for any product of a quantity and a percentage; the default of 28 digits is not.
EXACT: Final = Context(prec=100)
# How many days before its end an account hears of it.
REMIND_DAYS: Final = (7, 1)
CARD_DAYS: Final = Dunning().card_expiry_days
# What a notice of Stripe's facts is about.
_ABOUT: Final = {
    NoticeKind.TRIAL_ENDS: "subscription",
    NoticeKind.PAYMENT_FAILED: "invoice",
    NoticeKind.SUBSCRIPTION_ENDED: "subscription",
    NoticeKind.CARD_EXPIRES: "subscription",
    NoticeKind.PAYMENT_URGENT: "subscription",
    NoticeKind.DOWNGRADE_WARNING: "subscription",
    NoticeKind.DOWNGRADED: "subscription",
    NoticeKind.WIN_BACK: "subscription",
}
# After a decline for good, a notice does not speak of another try.
_HARD_NEXT: Final = {
    NoticeKind.PAYMENT_FAILED: "Nothing changes for now. The bank declined this card for good: pay with another one.",
    NoticeKind.PAYMENT_URGENT: "Nothing changes for now. This card cannot be used any more: pay with another one.",
}
# What a notice of dunning says beside what is open. The page of the invoice is the last line.
_DUNNING_WORDS: Final = {
    NoticeKind.PAYMENT_FAILED: "A payment of {name} failed: {amount} {currency} are open",
    NoticeKind.PAYMENT_URGENT: "The payment of {name} failed again: {amount} {currency} are open",
    NoticeKind.DOWNGRADE_WARNING: "{name} loses its plan at {downgrade_at}: {amount} {currency} are open",
    NoticeKind.DOWNGRADED: "{name} has lost its plan: {amount} {currency} are open",
    NoticeKind.WIN_BACK: "{name} can have its plan back: {amount} {currency} are open",
}
_DUNNING_NEXT: Final = {
    NoticeKind.PAYMENT_FAILED: "Nothing changes for now. Check the card, or pay with another one.",
    NoticeKind.PAYMENT_URGENT: "Nothing changes for now. The card needs attention: pay with another one.",
    NoticeKind.DOWNGRADE_WARNING: "From then on only the fallback plan holds. All data stays. Any card pays before.",
    NoticeKind.DOWNGRADED: "Only the fallback plan holds now. All data stays. A payment restores the plan at once.",
    NoticeKind.WIN_BACK: "All data is still there. A payment restores everything at once.",
}
STRIPE_KINDS: Final = tuple(_ABOUT)
SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # the prefix of every secret
SECRET_BYTES_MIN: Final = 24


class Bound(NamedTuple):
    """A quantity of a feature whose use is warned about, in units of the meter."""

    kind: NoticeKind
    feature: str
    meter: str
    quantity: Decimal


class Crossing(NamedTuple):
    """That an account has used `percent` of a bound, or more."""

    bound: Bound
    percent: int
    used: Decimal


def bounds_of(segment: Segment, features: Mapping[str, Feature]) -> tuple[Bound, ...]:
    """What the account is warned about while a segment holds: the limit of each feature with a meter, and what the
    base price covers of the meter if that is less. Nothing that is 0 or unlimited, and nothing of a denied feature."""
    found: list[Bound] = []
    for name, feature in features.items():
        resolved = segment.features.get(name)
        if feature.meter is None or resolved is None or resolved.is_denied:
            continue
        limit = resolved.value
        if isinstance(limit, Decimal) and limit > 0:
            found.append(Bound(NoticeKind.LIMIT_WARNING, name, feature.meter, limit))
        covered = segment.features.get(f"{INCLUDED}{feature.meter}")
        if covered is None or not isinstance(covered.value, Decimal) or covered.value <= 0:
            continue
        if limit == 0 or (isinstance(limit, Decimal) and limit <= covered.value):
            continue
        found.append(Bound(NoticeKind.INCLUDED_WARNING, name, feature.meter, covered.value))
    return tuple(found)


def crossings(bounds: Sequence[Bound], features: Mapping[str, Feature], used: Mapping[str, Decimal]) -> list[Crossing]:
    """The thresholds that the usage by meter has reached."""
    return [
        Crossing(bound, percent, used[bound.meter])
        for bound in bounds
        if bound.meter in used and bound.feature in features
        for percent in dict.fromkeys(features[bound.feature].warn_percent)
        if is_reached(used[bound.meter], bound.quantity, percent)
    ]


def is_reached(used: Decimal, quantity: Decimal, percent: int) -> bool:
    """Whether `used` is at least so many percent of a quantity; exact."""
    return EXACT.multiply(used, Decimal(100)) >= EXACT.multiply(quantity, Decimal(percent))


def used_units(minor: int, meter: Meter) -> Decimal:
    """A total in units of its meter."""
    return EXACT.scaleb(Decimal(minor), -meter.scale)


def notice_id(log_id: str, kind: NoticeKind, account: str, subject: str, period_start_ms: int, percent: int) -> str:
    """The id of a notice: always the same for the same fact in one deployment, whoever finds it."""
    about = msgspec.json.encode([log_id, kind.value, account, subject, period_start_ms, percent])
    return "ntc_" + blake2b(about, digest_size=16, person=b"tidemark notice").hexdigest()


def warning(log_id: str, account: str, crossing: Crossing, unit: str, period: Period, now_ms: int) -> Notice:
    """The notice of a crossing."""
    bound, percent = crossing.bound, crossing.percent
    identifier = notice_id(log_id, bound.kind, account, bound.feature, period.start_ms, percent)
    body = {
        "id": identifier,
        "type": bound.kind.value,
        "timestamp": format_instant_ms(now_ms),
        "data": {
            "account": account,
            "feature": bound.feature,
            "meter": bound.meter,
            "percent": percent,
            "of": f"{bound.quantity:f}",
            "used": f"{crossing.used:f}",
            "unit": unit,
            "period_start": format_instant_ms(period.start_ms),
            "period_end": format_instant_ms(period.end_ms),
        },
    }
    return Notice(
        identifier, bound.kind, account, bound.feature, period.start_ms, period.end_ms, percent,
        msgspec.json.encode(body).decode(), now_ms,
    )  # fmt: skip


def stripe_notice(log_id: str, fact: StripeFact, now_ms: int, card_days: Sequence[int] = CARD_DAYS) -> Notice | None:
    """The notice of what the mirror says, or None if none is due. Of the reminders of a trial and of a card, the last
    that is due; `card_days`: how many days before a card expires."""
    since_ms, until_ms, about = fact.at_ms, fact.at_ms, _ABOUT[fact.kind]
    if fact.kind in _DUNNING_WORDS and fact.kind is not NoticeKind.PAYMENT_FAILED:
        # Of one case each state is noticed once, and a row is kept for as long after the case may end.
        since_ms, until_ms = fact.since_ms, max(fact.at_ms, now_ms)
    data: dict[str, str | int | bool] = {"account": fact.account, about: fact.subject}
    if fact.kind in (NoticeKind.TRIAL_ENDS, NoticeKind.CARD_EXPIRES):
        is_trial = fact.kind is NoticeKind.TRIAL_ENDS
        due = [
            days
            for days in (REMIND_DAYS if is_trial else card_days)
            if fact.since_ms <= fact.at_ms - days * DAY_MS <= now_ms
        ]
        if not due:
            return None
        since_ms = fact.at_ms - min(due) * DAY_MS
        data |= {"days": min(due), "trial_end" if is_trial else "expires_at": format_instant_ms(fact.at_ms)}
    elif fact.kind in _DUNNING_WORDS:
        amount = EXACT.scaleb(Decimal(fact.remaining_minor), -fact.exponent)
        data |= {"amount": f"{amount:f}", "currency": fact.currency, "pay_url": fact.pay_url}
        data |= {"decline_code": fact.decline_code, "needs_another_card": fact.decline_code in HARD_DECLINES}
        if fact.kind is not NoticeKind.PAYMENT_FAILED and fact.at_ms:
            data |= {"downgrade_at": format_instant_ms(fact.at_ms)}
    else:
        data |= {"ended_at": format_instant_ms(fact.at_ms)}
    identifier = notice_id(log_id, fact.kind, fact.account, fact.subject, since_ms, 0)
    body = {"id": identifier, "type": fact.kind.value, "timestamp": format_instant_ms(now_ms), "data": data}
    text = msgspec.json.encode(body).decode()
    return Notice(identifier, fact.kind, fact.account, fact.subject, since_ms, until_ms, 0, text, now_ms)


def words(notice: Notice, page: str = "") -> tuple[str, str]:
    """The subject and the text of a mail. `page`: the account's own page, to which a mail about payments links instead
    of Stripe's page of the invoice; "": there is none."""
    data = msgspec.json.decode(notice.body)["data"]
    if notice.kind in _ABOUT:
        return _stripe_words(notice, data, page)
    what = {NoticeKind.LIMIT_WARNING: "its limit", NoticeKind.INCLUDED_WARNING: "what its price includes"}[notice.kind]
    name = printable(notice.account)
    after = {
        NoticeKind.LIMIT_WARNING: "Beyond the limit, requests may be refused.",
        NoticeKind.INCLUDED_WARNING: "What is used beyond it is billed.",
    }[notice.kind]
    text = (
        f"Account {name} has used {data['used']} of {data['of']} {data['unit']} ({notice.subject}) "
        f"in the billing period that ends at {data['period_end']}. That is {notice.percent} % of {what}, or more.\n\n"
        f"{after}\n"
    )
    return f"{name} has used {notice.percent} % of {what}: {notice.subject}", text


def _stripe_words(notice: Notice, data: Mapping[str, str], page: str) -> tuple[str, str]:
    name = printable(notice.account)
    if notice.kind in _DUNNING_WORDS:
        said = _DUNNING_WORDS[notice.kind].format_map({**data, "name": name})
        # A notice from before this version has no page.
        link = page or printable(data.get("pay_url", ""))
        is_hard = data.get("needs_another_card") and notice.kind in _HARD_NEXT
        next_ = (_HARD_NEXT if is_hard else _DUNNING_NEXT)[notice.kind]
        return said, f"{said} ({notice.subject}).\n\n{next_}\n" + (f"\n{link}\n" if link else "")
    if notice.kind is NoticeKind.TRIAL_ENDS:
        said = f"The trial of {name} ends at {data['trial_end']}"
    elif notice.kind is NoticeKind.CARD_EXPIRES:
        said = f"The card of {name} expires at {data['expires_at']}: the next payment needs another one"
    else:
        said = f"A subscription of {name} ended at {data['ended_at']}"
    link = f"\n{page}\n" if page and notice.kind is NoticeKind.CARD_EXPIRES else ""
    return said, f"{said} ({notice.subject}).\n{link}"


def printable(text: str) -> str:
    """A text that moves no cursor and begins no line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def secret_bytes(secret: str) -> bytes:
    """The key of a secret `whsec_…`. Raises `ValueError` if the text is none."""
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError("begins with whsec_")
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    if len(key) < SECRET_BYTES_MIN:
        raise ValueError(f"has {SECRET_BYTES_MIN} bytes or more")
    return key


def signature(identifier: str, timestamp_s: int, body: bytes, keys: Sequence[bytes]) -> str:
    """The header `webhook-signature` of Standard Webhooks: one signature for each key, so that keys can be rotated.

    Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
    """
    signed = f"{identifier}.{timestamp_s}.".encode() + body
    digests = (hmac.new(key, signed, sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
