"""A naive model of bindings, late bindings and closings: the periods of accounts, and which periods are closed.

Written only from docs/invariants.md (I8, I9, S11). Times are int milliseconds UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
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


class Accounts:
    """The accounts of a log. `serial` is the number of counted events of an account at some instant.

    `declined` has the accounts whose restatement was declined.
    """

    def __init__(self) -> None:
        self.declined: list[str] = []
        self._bindings: dict[str, list[Binding]] = defaultdict(list)
        self._named: set[str] = set()
        self._payers: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self._closed: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._late: dict[str, _Late] = {}

    def from_the_start(self, account: str, known: Sequence[Fields]) -> None:
        """Set the bindings that are in force before the first event."""
        self._bindings[account] = sorted(binding_of(fields) for fields in known)

    def period(self, account: str, instant_ms: int) -> Period:
        """The account's period that contains the instant, by the bindings processed so far."""
        return period_containing(self._bindings.get(account, ()), instant_ms)

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
        """The possible payers of usage at an instant, by the bindings processed up to a stream time.

        The last binding that applies names the payer. A binding at exactly that stream time gives two possible payers.
        """
        payers = [(stream_ms, payer) for stream_ms, from_ms, payer in self._payers[account] if from_ms <= instant_ms]
        before = [payer for stream_ms, payer in payers if stream_ms < log_ms]
        by_then = [payer for stream_ms, payer in payers if stream_ms <= log_ms]
        return {*before[-1:], *by_then[-1:]}

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
        self._replace(account, binding_of(late.fields, late.effective_ms), late.effective_ms)
        self._name(account, late.fields, log_ms)
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
        newest = binding_of(fields, max(_beyond_ms(log_ms, policy), carrying_ms))
        self._replace(account, newest, max(newest.effective_from_ms, carrying_ms + 1))
        self._name(account, fields, log_ms)

    def _replace(self, account: str, newest: Binding, until_ms: int) -> None:
        kept = [known for known in self._bindings[account] if known.effective_from_ms < until_ms]
        self._bindings[account] = [*kept, newest]

    def _name(self, account: str, fields: Fields, log_ms: int) -> None:
        self._payers[account].append((log_ms, int(fields["effective_from_ms"]), fields.get("stripe_customer", "")))
        if fields.get("billing", "unmapped") != "unmapped":
            self._named.add(account)

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
        kept = [known for known in self._bindings[account] if known.effective_from_ms < effective_ms]
        changed = [*kept, binding_of(fields, effective_ms)]
        if _cuts(self._bindings[account], beyond_ms) == _cuts(changed, beyond_ms):
            return None
        return effective_ms

    def _starts_closed(self, account: str, serial: int | None) -> set[int]:
        return {start_ms for start_ms, number in self._closed.get(account, ()) if serial is None or number <= serial}


def _beyond_ms(log_ms: int, policy: Policy) -> int:
    """The first whole minute that no event can have reached."""
    return ((log_ms + policy.future_ms) // MINUTE_MS + 1) * MINUTE_MS


def _cuts(bindings: Sequence[Binding], before_ms: int) -> list[Binding]:
    """The bindings before an instant that change the anchor or interval of their predecessor."""
    rule: tuple[Any, ...] = Binding(0)[1:]
    cuts = []
    for binding in bindings:
        if binding[1:] != rule and binding.effective_from_ms < before_ms:
            cuts.append(binding)
        rule = binding[1:]
    return cuts
