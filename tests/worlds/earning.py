"""The ten accounts of docs/revenue.md as the finance dashboard shows them, and a server that shows them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import uvicorn
from starlette.applications import Starlette

from aggregators.mrr import cohorts, months
from aggregators.recognition import Totals, schedule_of
from pipeline.access.dunning import month_starts
from pipeline.http.serving import QuietServer
from portal.dashboard_router import Shown, dashboard_routes
from portal.figures import Figures, UsageMonth, days_until
from portal.tokens import FINANCE, signed
from schemas.clock import DAY_MS
from schemas.dunning import Recovery
from schemas.recognition import FinalLine
from schemas.revenue import Movement, MovementKind
from tests.worlds.clock import ManualClock
from tests.worlds.paged import PATIENCE_S, STOP_S

SECRET: Final = "a-secret-of-the-dashboard-with-forty-chars"
# Dollars a month of an account, from a day on.
HISTORY: Final = {
    "ann": {"2026-09-03": 100},
    "bob": {"2026-09-20": 200, "2026-10-10": 300},
    "cleo": {"2026-10-01": 100, "2026-11-15": 0},
    "dora": {"2026-10-05": 500, "2026-11-05": 400, "2026-12-05": 600},
    "emil": {"2026-10-31": 100, "2026-11-30": 0, "2026-12-20": 150},
    "fay": {"2026-11-01": 250},
    "gus": {"2026-11-11": 100, "2026-12-11": 0},
    "hana": {"2026-12-01": 700},
    "ivo": {"2026-12-24": 100},
    "june": {"2027-01-02": 100},
}
EURO: Final = {"<kai>": {"2026-11-20": 80}}
UNPAID: Final = frozenset({"gus"})
NOW: Final = "2027-01-15"


def ms(day: str) -> int:
    """A day of a text such as `2026-10-01`."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000


def _movements(currency: str, history: dict[str, dict[str, int]]) -> Iterator[Movement]:
    for account, amounts in history.items():
        before, was_ever = 0, False
        for day, amount in amounts.items():
            kind = MovementKind.EXPANSION if amount > before else MovementKind.CONTRACTION
            if not before:
                kind = MovementKind.REACTIVATION if was_ever else MovementKind.NEW
            elif not amount:
                kind = MovementKind.INVOLUNTARY_CHURN if account in UNPAID else MovementKind.CHURN
            yield Movement(account, currency, ms(day), kind, 100 * before, 100 * amount)
            before, was_ever = amount, True


def _line(name: str, amount_minor: int, first: str, until: str, currency: str = "usd") -> FinalLine:
    return FinalLine(name, f"in_{name}", "cus", currency, amount_minor, ms(first), ms(until), ms(first))


def figures() -> Figures:
    """Each month is billed at its beginning; hana pays a year."""
    now_ms = ms(NOW)
    starts_ms = month_starts(now_ms, 13)
    movements = [*_movements("usd", HISTORY), *_movements("eur", EURO)]
    lines = [
        _line("sep", 30_000, "2026-09-01", "2026-10-01"),
        _line("oct", 110_000, "2026-10-01", "2026-11-01"),
        _line("nov", 115_000, "2026-11-01", "2026-12-01"),
        _line("dec", 150_000, "2026-12-01", "2027-01-01"),
        _line("year", 840_000, "2026-12-01", "2027-12-01"),
        _line("kai", 8_000, "2026-11-20", "2026-12-20", "eur"),
    ]
    totals = Totals(days_until(now_ms, starts_ms))
    for line in lines:
        totals.add_line(schedule_of(line))
    return Figures(
        now_ms,
        starts_ms,
        movements,
        months(movements, starts_ms),
        cohorts(movements, starts_ms),
        totals.rows(),
        [
            # ann and bob pay late.
            Recovery(ms("2026-10-01"), "usd", 2, 2, 2, 40_000, 40_000, 0),
            # ann pays late again; cleo and emil leave without paying, and gus is ended for it.
            Recovery(ms("2026-11-01"), "usd", 2, 4, 1, 40_000, 10_000, 0),
            # fay and ivo have not paid yet.
            Recovery(ms("2026-12-01"), "usd", 2, 2, 0, 35_000, 0, 2),
        ],
        [UsageMonth(ms("2026-11-01"), "usd", 20_000), UsageMonth(ms("2026-12-01"), "usd", 24_515)],
        3,
    )


def business(pays: dict[str, int], lines: Sequence[tuple[int, str, str]]) -> Figures:
    """The figures of one account. `pays`: dollars a month from a day on; `lines`: amount, first day and end."""
    known = figures()
    movements = list(_movements("usd", {"ann": pays}))
    totals = Totals(days_until(known.now_ms, known.starts_ms))
    for number, (amount_minor, first, until) in enumerate(lines):
        totals.add_line(schedule_of(_line(f"{number}", amount_minor, first, until)))
    return known._replace(
        movements=movements,
        months=months(movements, known.starts_ms),
        recognized=totals.rows(),
        recoveries=(),
        usage=(),
    )


class Fixed:
    """`FinanceBooks` with the same figures for ever. `error` is raised instead, if there is one."""

    def __init__(self, shown: Figures) -> None:
        self.shown = shown
        self.error: Exception | None = None

    async def figures(self) -> Figures:
        """See `FinanceBooks`."""
        if self.error is not None:
            raise self.error
        return self.shown


def token(life_ms: int = DAY_MS) -> str:
    """A token of the dashboard."""
    return signed("", ms(NOW) + life_ms, SECRET, FINANCE)


def dashboard_app(books: Fixed) -> Starlette:
    """The dashboard alone."""
    return Starlette(routes=dashboard_routes(Shown(books, ManualClock(ms(NOW)), lambda: [SECRET])))


@contextlib.contextmanager
def served_dashboard(books: Fixed) -> Iterator[str]:
    """The address of the dashboard on a port of this machine, served by a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(dashboard_app(books), lifespan="off", log_config=None, timeout_graceful_shutdown=STOP_S)
        server = QuietServer(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/revenue/{token()}/"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
