"""Notices: what a business or its customer should hear of an account, and how far the delivery of each has come.

A notice is a row before it is sent. Its id follows from what the notice is about, so that two processes, or a process
that begins again, make one notice of one fact, and a receiver knows a repeated delivery by its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class NoticeKind(StrEnum):
    """What a notice is about. The list is closed: a receiver may branch on it.

    - `limit_warning`: an account has used so many percent of a limit in its running period.
    - `included_warning`: an account has used so many percent of what its base price covers; more is billed.
    - `trial_ends`: the trial of a subscription ends in a week or in a day.
    - `payment_failed`: Stripe tried to collect an invoice, and it is still open.
    - `subscription_ended`: a subscription has ended.
    - `card_expires`: the card that pays a subscription expires in a month or in a week.
    - `payment_urgent`, `downgrade_warning`, `downgraded`, `win_back`: a dunning case is in that state
      (`schemas.dunning`); the first of its states is what `payment_failed` says.
    - `journal_entry`: an entry of the journal has its number (`schemas.journal`). Only the channel `finance` has it.
    """

    LIMIT_WARNING = "limit_warning"
    INCLUDED_WARNING = "included_warning"
    TRIAL_ENDS = "trial_ends"
    PAYMENT_FAILED = "payment_failed"
    SUBSCRIPTION_ENDED = "subscription_ended"
    CARD_EXPIRES = "card_expires"
    PAYMENT_URGENT = "payment_urgent"
    DOWNGRADE_WARNING = "downgrade_warning"
    DOWNGRADED = "downgraded"
    WIN_BACK = "win_back"
    JOURNAL_ENTRY = "journal_entry"


class ChannelName(StrEnum):
    """By which way a notice goes. A deployment has at most one channel of each name. `finance` is the webhook of the
    finance system, which gets the journal and nothing else."""

    WEBHOOK = "webhook"
    MAIL = "mail"
    FILE = "file"
    FINANCE = "finance"


class DeliveryState(StrEnum):
    """How far a delivery has come. The list is closed.

    - `waiting`: to be sent, for the first time or again.
    - `sent`: the receiver took the notice.
    - `obsolete`: no longer true when it was to be sent. If the fact comes back in the same period, the delivery waits
      again.
    - `unaddressed`: nobody is known to whom the notice could go.
    - `dead`: not taken for three days. An operator must act.
    """

    WAITING = "waiting"
    SENT = "sent"
    OBSOLETE = "obsolete"
    UNADDRESSED = "unaddressed"
    DEAD = "dead"


class Notice(NamedTuple):
    """A fact about an account. `subject`: the feature, the subscription or the invoice. `percent`: the threshold that
    was reached; 0 of what Stripe says, where `period_start_ms` is the instant since which the notice is due.

    `id` follows from kind, account, subject, period and percent. `body` is the JSON text that is delivered; it is made
    once, so every attempt delivers the same bytes.
    """

    id: str
    kind: NoticeKind
    account: str
    subject: str
    period_start_ms: int
    period_end_ms: int
    percent: int
    body: str
    made_ms: int


class StripeFact(NamedTuple):
    """What the mirror says of a subscription or an invoice of the account that is linked to its customer now, or what
    a dunning case says of a subscription.

    `at_ms`: the end of the trial, the creation of the invoice, the end of the subscription or of the card, or the
    downgrade, before which it is 0. `since_ms`: when the subscription or the case began. `remaining_minor` and what
    follows: what is open of the invoices, the page at Stripe on which the oldest one is paid, or "", and why its last
    payment failed, or "".
    """

    kind: NoticeKind
    account: str
    subject: str
    at_ms: int
    since_ms: int = 0
    remaining_minor: int = 0
    currency: str = ""
    exponent: int = 0
    pay_url: str = ""
    decline_code: str = ""


class Delivery(NamedTuple):
    """A notice on its way through one channel.

    `attempts` counts the claims; who settles a delivery proves with it that nobody claimed the delivery since.
    `failures` counts what the receiver did not take. `due_ms`: when it is to be sent, or when the claim ends.
    """

    notice: Notice
    channel: ChannelName
    state: DeliveryState = DeliveryState.WAITING
    attempts: int = 0
    failures: int = 0
    due_ms: int = 0
    detail: str = ""
    settled_ms: int | None = None


class DeliveryCounts(NamedTuple):
    """How many deliveries wait, since when the oldest of them (None without one), and how many are dead."""

    waiting: int
    oldest_ms: int | None
    dead: int


class Channel(Protocol):
    """Delivers notices. One object serves many concurrent calls."""

    async def send(self, notice: Notice) -> bool:
        """Deliver a notice. False: there is nobody to whom it could go.

        Raises `Transient` if the receiver did not take the notice, or if nobody knows whether it did: then the same
        notice comes again. Takes a minute at most.
        """
        ...


class NoticeOutbox(Protocol):
    """The store of notices. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def add(self, notices: Sequence[Notice], channels: Sequence[ChannelName]) -> int:
        """Write a delivery for each notice and channel that has none. Returns how many wait anew. Repeatable.

        An obsolete delivery waits again, with the new body. Every other delivery stays as it is.
        """
        ...

    async def claim(
        self, now_ms: int, until_ms: int, limit: int, channel: ChannelName | None = None
    ) -> Sequence[Delivery]:
        """Take up to `limit` deliveries that are due, oldest first, so that nobody else gets them before `until_ms`;
        with `channel`, only those of one channel. After `Transient` they may be claimed: they are due again at
        `until_ms`."""
        ...

    async def settle(self, delivery: Delivery, state: DeliveryState, detail: str, now_ms: int) -> bool:
        """End a claimed delivery. False, and nothing is written, if somebody claimed it since. Repeatable."""
        ...

    async def postpone(self, delivery: Delivery, due_ms: int, failures: int, detail: str) -> bool:
        """Have a claimed delivery sent at `due_ms`. False, and nothing is written, if somebody claimed it since."""
        ...

    async def retry(self, notice: str, now_ms: int) -> int:
        """Have the dead deliveries of one notice sent again, or those of all notices if `notice` is "". Returns how
        many. An obsolete delivery stays: what is not true is not sent."""
        ...

    async def listed(
        self,
        state: DeliveryState | None = None,
        account: str = "",
        limit: int = 100,
        before: str = "",
        *,
        but: ChannelName | None = None,
    ) -> Sequence[Delivery]:
        """One page of deliveries, the newest first, without those of one channel if named; `before` is `cursor_of` the
        last one of the page before. Raises `InvalidInput` for another text."""
        ...

    async def counts(self, *, but: ChannelName | None = None) -> DeliveryCounts:
        """How many deliveries wait and are dead; without those of one channel if named."""
        ...

    async def facts(
        self, kind: NoticeKind, now_ms: int, after: str = "", limit: int = 500, *, subject: str = ""
    ) -> Sequence[StripeFact]:
        """One page of what the mirror says now, by subject, behind `after`; or what it says of one subject.

        Trials that end within a week, invoices of a month that Stripe tried to collect and that are open,
        subscriptions that ended within three days, cards that expire within two months, and open dunning cases in the
        state of the kind. Nothing of the other kinds. Of one `subject`, an older invoice and end are told too: a notice
        that was made in time stays true.
        """
        ...

    async def address(self, account: str, now_ms: int) -> str:
        """The e-mail address of the Stripe customer that the account is linked to, or ""."""
        ...

    async def prune(self, before_ms: int, limit: int) -> int:
        """Delete up to `limit` deliveries that are settled and whose period ended before `before_ms`. Returns how
        many."""
        ...


def cursor_of(delivery: Delivery) -> str:
    """The text after which the next page of `NoticeOutbox.listed` begins."""
    return f"{delivery.notice.made_ms}.{delivery.notice.id}.{delivery.channel}"
