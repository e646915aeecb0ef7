"""A naive model of bindings, late bindings, closings and flushes: the periods of accounts, which are closed, and where
the reports of an account are cut.

Written only from docs/invariants.md (I8, I9, I10, S11). Times are int milliseconds UTC.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from oracle.rules import MINUTE_MS, Binding, binding_of, period_containing

Period = tuple[int, int]
Fields = Mapping[str, Any]
WAITING_MAX = 100
RESTATEMENT_MS_MAX = 10 * MINUTE_MS


class Policy(NamedTuple):
    """The settings in force at a record."""

    future_ms: int
    grace_ms: int


class _Late(NamedTuple):
    """A late binding that waits for its restatement; `later` are bindings that arrived meanwhile.

    `offset` is the record that the next record of the restatement must name. Events are deferred until `until_ms`.
    """

    offset: int
    effective_ms: int
    fields: Fields
    later: list[Fields]
    until_ms: int = -1
    times: int = 0


class _Payer(NamedTuple):
    """Whom a binding names, which was processed at stream time `log_ms`: for all usage from `from_ms` on, and since
    `asked_ms` for usage that nobody was named for."""

    log_ms: int
    asked_ms: int
    from_ms: int
    billing: str
    customer: str


_NOBODY = _Payer(0, 0, 0, "unmapped", "")


def _paying(payers: Sequence[_Payer], instant_ms: int) -> _Payer:
    """Who pays at an instant after these bindings."""
    paying = _NOBODY
    for payer in payers:
        if instant_ms >= payer.from_ms or (instant_ms >= payer.asked_ms and paying.billing == "unmapped"):
            paying = payer
    return paying


class Accounts:
    """The accounts of a log. `serial` is the number of counted events of an account at some instant.

    `declined` has the accounts whose restatement was declined. `repeated` counts the bindings, closings and flushes
    that changed nothing because their revision was not above the revisions before. `flushes` has the instants at which
    an account's report buckets ended early.
    """

    def __init__(self) -> None:
        self.declined: list[str] = []
        self.repeated: Counter[str] = Counter()
        self.flushes: dict[str, list[int]] = defaultdict(list)
        self._revisions: dict[str, int] = {}
        self._bindings: dict[str, list[Binding]] = defaultdict(list)
        self._named: set[str] = set()
        self._payers: dict[str, list[_Payer]] = defaultdict(list)
        self._closed: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._late: dict[str, _Late] = {}

    def from_the_start(self, account: str, known: Sequence[Fields]) -> None:
        """Set the bindings that are in force before the first event."""
        self._bindings[account] = sorted(binding_of(fields) for fields in known)

    def period(self, account: str, instant_ms: int) -> Period:
        """The account's period that contains the instant, by the bindings processed so far."""
        return period_containing(self._bindings.get(account, ()), instant_ms)

    def ended(self, account: str, from_ms: int, log_ms: int) -> Iterator[tuple[Period, Period]]:
        """The periods that end after an instant and not after a stream time, each with the next one."""
        period = self.period(account, from_ms)
        while period[1] <= log_ms:
            after = self.period(account, period[1])
            yield period, after
            period = after

    def carrying_period(self, account: str, log_ms: int, serial: int | None = None) -> Period:
        """The first period from stream time on that no close record closed."""
        closed = self._starts_closed(account, serial)
        period = self.period(account, log_ms)
        while period[0] in closed:
            period = self.period(account, period[1])
        return period

    def counting_period(
        self, account: str, time_ms: int, log_ms: int, grace_ms: int, serial: int | None = None
    ) -> tuple[Period, bool]:
        """(the period in which an event counts, whether its own period was closed).

        With `serial`, ignores closings after that number of counted events.
        """
        own = self.period(account, time_ms)
        if own[0] not in self._starts_closed(account, serial) and log_ms < own[1] + grace_ms:
            return own, False
        return self.carrying_period(account, log_ms, serial), True

    def is_waiting(self, account: str, log_ms: int) -> bool:
        """Whether the account's events are deferred because a restatement runs."""
        return account in self._late and log_ms < self._late[account].until_ms

    def payers(self, account: str, instant_ms: int, log_ms: int) -> set[str]:
        """The possible payers of usage at an instant, by the bindings processed up to a stream time. A binding at
        exactly that stream time gives two possible payers."""
        payers = self._payers[account]
        before = [payer for payer in payers if payer.log_ms < log_ms]
        by_then = [payer for payer in payers if payer.log_ms <= log_ms]
        return {_paying(known, instant_ms).customer for known in (before, by_then)}

    def billing(self, account: str, instant_ms: int) -> str:
        """How usage at an instant is billed by all bindings: mapped, free or unmapped."""
        return _paying(self._payers[account], instant_ms).billing

    def is_billed_to_another(self, account: str, usage_ms: int, period_start_ms: int) -> bool:
        """Whether somebody was named for usage at an instant, and another one pays for a period."""
        paid, paying = (_paying(self._payers[account], instant_ms) for instant_ms in (usage_ms, period_start_ms))
        return paid.billing != "unmapped" and paid[3:] != paying[3:]

    def has_several_payers(self, account: str) -> bool:
        """Whether the bindings named more than one payer, at any time."""
        return len({payer[3:] for payer in self._payers[account]}) > 1

    def is_newest(self, account: str, revision: int | None) -> bool:
        """Whether no binding or closing of the account with this or a higher revision was processed; counts the other
        records, which must not be processed. None stands for the next revision."""
        last = self._revisions.get(account, 0)
        if revision is not None and revision <= last:
            self.repeated[account] += 1
            return False
        self._revisions[account] = last + 1 if revision is None else revision
        return True

    def bind(self, account: str, fields: Fields, log_ms: int, policy: Policy, offset: int) -> None:
        """Process a binding: it waits for its restatement or for a pending one, or takes effect in the future."""
        if account in self._late:
            self._late[account].later.append(fields)
            if len(self._late[account].later) > WAITING_MAX:
                self._give_up(account, log_ms, policy)
            return
        effective_ms = self._late_from(account, fields, log_ms, policy)
        if effective_ms is None:
            self._place(account, fields, log_ms, policy)
        else:
            self._late[account] = _Late(offset, effective_ms, fields, [])

    def close(self, account: str, instant_ms: int, offset: int, serial: int) -> None:
        """Close the period of an instant. A pending restatement must begin again."""
        self._closed[account].append((self.period(account, instant_ms)[0], serial))
        if account in self._late:
            self._late[account] = self._late[account]._replace(offset=offset, until_ms=-1)

    def flush(self, account: str, log_ms: int, interval_ms: int) -> int | None:
        """End the account's report bucket; return the instant at which the next one begins, or None if the bucket of
        all accounts ends there anyway. No bucket is empty."""
        bucket_ms = log_ms // interval_ms * interval_ms
        instant_ms = max(log_ms, bucket_ms + 1, *(flush_ms + 1 for flush_ms in self.flushes[account]))
        if instant_ms >= bucket_ms + interval_ms:
            return None
        self.flushes[account].append(instant_ms)
        return instant_ms

    def begin(self, account: str, answers: int, offset: int, log_ms: int, policy: Policy) -> None:
        """Begin the restatement, at `offset`, of the late binding at `answers`, or begin it again."""
        late = self._late.get(account)
        if late is None or late.offset != answers or self.is_waiting(account, log_ms):
            return
        effective_ms = self._late_from(account, late.fields, log_ms, policy)
        if effective_ms is None:
            self._give_up(account, log_ms, policy)
        else:
            times = late.times + 1
            until_ms = log_ms + RESTATEMENT_MS_MAX * (1, 2, 4, 8)[min(times, 4) - 1]
            self._late[account] = _Late(offset, effective_ms, late.fields, late.later, until_ms, times)

    def answer(self, account: str, offset: int, *, declined: bool, log_ms: int, policy: Policy) -> bool:
        """End the restatement begun at `offset`; return whether all usage must be counted again now."""
        late = self._late.get(account)
        if late is None or late.offset != offset or not self.is_waiting(account, log_ms):
            return False
        if declined:
            self.declined.append(account)
            self._give_up(account, log_ms, policy)
            return False
        del self._late[account]
        self._take(account, late.fields, late.effective_ms, late.effective_ms, log_ms)
        for fields in late.later:
            self._place(account, fields, log_ms, policy)
        return True

    def _give_up(self, account: str, log_ms: int, policy: Policy) -> None:
        late = self._late.pop(account)
        for fields in (late.fields, *late.later):
            self._place(account, fields, log_ms, policy)

    def _place(self, account: str, fields: Fields, log_ms: int, policy: Policy) -> None:
        """Add a binding that changes no past period.

        The effect begins at the earliest in the first whole minute that no event can have reached (after stream time
        plus the future limit), and not before the period that takes carried usage. The binding replaces bindings with
        the same or a later effect, except those that define the start of that period.
        """
        carrying_ms = self.carrying_period(account, log_ms)[0]
        effective_ms = max(int(fields["effective_from_ms"]), _beyond_ms(log_ms, policy), carrying_ms)
        self._take(account, fields, effective_ms, max(effective_ms, carrying_ms + 1), log_ms)

    def _take(self, account: str, fields: Fields, effective_ms: int, until_ms: int, log_ms: int) -> None:
        """Put a binding in force at an instant, instead of all bindings from `until_ms` on."""
        self._bindings[account], payers = self._with(account, fields, effective_ms, until_ms, log_ms)
        self._payers[account] = payers
        if payers[-1].billing != "unmapped":
            self._named.add(account)

    def _with(
        self, account: str, fields: Fields, effective_ms: int, until_ms: int, log_ms: int
    ) -> tuple[list[Binding], list[_Payer]]:
        """The bindings and payers with another binding in force at an instant."""
        billing, customer = fields.get("billing", "unmapped"), fields.get("stripe_customer", "")
        asked_ms = int(fields["effective_from_ms"])
        start_ms, end_ms = self.period(account, asked_ms)
        if account in self._named and start_ms != asked_ms:
            # Usage of an account that had a payer is never divided again: only whole periods get a name.
            asked_ms = end_ms
        named = _Payer(log_ms, asked_ms, effective_ms, billing, customer)
        payers = [*self._payers[account], named]
        changes = _paying(payers, effective_ms - 1)[3:] != named[3:]
        kept = [known for known in self._bindings[account] if known.effective_from_ms < until_ms]
        # If the binding before it would end a period here in any case, the payer changes nothing.
        ends = changes and period_containing(kept, effective_ms)[0] != effective_ms
        return [*kept, binding_of(fields, effective_ms)._replace(ends_period=ends)], payers

    def _late_from(self, account: str, fields: Fields, log_ms: int, policy: Policy) -> int | None:
        """The instant from which a binding changes periods with counted usage, at the earliest the start of the first
        period that is open and has only open successors. None if no such period changes or the account had a payer."""
        open_ms = self.carrying_period(account, log_ms)[0]
        closed = self._starts_closed(account, None)
        while True:
            before = self.period(account, open_ms - 1)
            if before[0] in closed or before[1] + policy.grace_ms <= log_ms:
                break
            open_ms = before[0]
        open_ms = max([open_ms, *(self.period(account, start_ms)[1] for start_ms in closed)])
        effective_ms = max(int(fields["effective_from_ms"]), open_ms)
        beyond_ms = _beyond_ms(log_ms, policy)
        if effective_ms >= beyond_ms or account in self._named:
            return None
        changed, _ = self._with(account, fields, effective_ms, effective_ms, log_ms)
        if _cuts(self._bindings[account], beyond_ms) == _cuts(changed, beyond_ms):
            return None
        return effective_ms

    def _starts_closed(self, account: str, serial: int | None) -> set[int]:
        return {start_ms for start_ms, number in self._closed.get(account, ()) if serial is None or number <= serial}


def _beyond_ms(log_ms: int, policy: Policy) -> int:
    """The first whole minute that no event can have reached."""
    return ((log_ms + policy.future_ms) // MINUTE_MS + 1) * MINUTE_MS


def _cuts(bindings: Sequence[Binding], before_ms: int) -> list[Binding]:
    """The bindings before an instant that end a period or change the rule of their predecessor."""
    rule = Binding(0).rule
    cuts = []
    for binding in bindings:
        if (binding.rule != rule or binding.ends_period) and binding.effective_from_ms < before_ms:
            cuts.append(binding._replace(ends_period=False))
        rule = binding.rule
    return cuts
