"""The finance dashboard: what its pages and files say of the ten accounts of docs/revenue.md, and who sees them."""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Final

import httpx
import pytest
import pytest_asyncio

from portal.dashboard import why_page
from portal.figures import Figures
from portal.tokens import CUSTOMER, signed
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from tests.worlds.earning import NOW, SECRET, Fixed, business, dashboard_app, figures, ms, token


class Reader:
    """Somebody with a link."""

    def __init__(self, books: Fixed, client: httpx.AsyncClient) -> None:
        self.books, self.client = books, client

    async def words(self, path: str = "") -> str:
        """What a page says, in one line."""
        answer = await self.client.get(f"/revenue/{token()}/{path}")
        assert answer.status_code == 200, answer.text
        return " ".join(unescape(re.sub("<[^>]+>", " ", answer.text)).split())

    async def file(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file."""
        answer = await self.client.get(f"/revenue/{token()}/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        return list(csv.DictReader(answer.text.splitlines()))


@pytest_asyncio.fixture
async def reader() -> AsyncIterator[Reader]:
    books = Fixed(figures())
    transport = httpx.ASGITransport(dashboard_app(books))
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
        yield Reader(books, client)


async def test_the_month_says_how_much_was_earned_and_why_that_changed(reader: Reader) -> None:
    words = await reader.words("months/2026-10?currency=usd")
    assert "October 2026: earned $1,100.00. That is $800.00 more than in September 2026." in words
    assert "Recurring revenue went from $300.00 to $1,100.00 a month: new $700.00, expansion $100.00." in words
    # By hand: ann 28 and bob 11 days of September's 30; in October bob's 100 more for 22 days of 31, cleo, dora for 27
    # days and emil for one, less the days of September that ann and bob lacked.
    causes = (
        "recurring revenue, each from its day on, explain $743.01 of this; usage, credits and all else explain $56.99."
    )
    assert causes in words
    assert "New 3 $700.00 Expansion 1 $100.00" in words
    assert "Usage of periods" not in words
    assert "Usage of periods that ended in it: $245.15." in await reader.words("months/2026-12?currency=usd")
    assert [name for name in ("ann", "bob", "cleo", "dora", "emil", "fay") if f" {name} " in words] == [
        "bob", "cleo", "dora", "emil",
    ]  # fmt: skip


# An account of 31 dollars a month: what it pays from which day on, the lines that bill it, and what a month says.
CAUSES: Final = {
    "from the first day": (
        {"2026-10-01": 31}, [(3_100, "2026-10-01", "2026-11-01")], "2026-10", "explain $31.00 of this."
    ),
    "from the middle": (
        {"2026-10-16": 31}, [(3_100, "2026-10-16", "2026-11-16")], "2026-10", "explain $16.00 of this."
    ),
    # A day of the second period costs more than one of the first.
    "from the middle of the month before": (
        {"2026-10-16": 31}, [(3_100, "2026-10-16", "2026-11-16"), (3_100, "2026-11-16", "2026-12-16")], "2026-11",
        "explain $15.00 of this; usage, credits and all else explain −$0.50.",
    ),
    "until the middle": (
        {"2026-09-01": 31, "2026-10-16": 0}, [(3_100, "2026-09-01", "2026-10-01"), (1_500, "2026-10-01", "2026-10-16")],
        "2026-10", "explain −$16.00 of this.",
    ),
    "nothing but other lines": (
        {}, [(500, "2026-10-01", "2026-11-01")], "2026-10",
        "explain $0.00 of this; usage, credits and all else explain $5.00.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pays", "lines", "month", "says"), CAUSES.values(), ids=list(CAUSES))
def test_what_changes_recurring_revenue_explains_what_was_earned(
    pays: dict[str, int], lines: list[tuple[int, str, str]], month: str, says: str
) -> None:
    page = why_page(business(pays, lines), "usd", ms(f"{month}-01"))
    assert says in " ".join(re.sub("<[^>]+>", " ", page).split())


async def test_the_dashboard_begins_with_the_newest_months_in_words(reader: Reader) -> None:
    words = await reader.words()
    # Of 8 400.00 for a year, December has 31 days of 365.
    assert "December 2026: earned $2,213.42. That is $1,063.42 more than in November 2026." in words
    assert "January 2027: earned $345.21 so far. Recurring revenue went from $2,200.00 to $2,300.00 a month:" in words
    assert "3 items have prices of no catalog" in words


FILES = {
    "mrr.csv": {
        "month": "2026-12", "start": "1150.00", "new": "800.00", "reactivation": "150.00", "expansion": "200.00",
        "contraction": "0.00", "churn": "0.00", "involuntary_churn": "-100.00", "end": "2200.00",
    },
    "retention.csv": {
        "month": "2026-12", "accounts": "7", "annual": "26400.00", "net_retention_percent": "108.7",
        "gross_retention_percent": "91.3",
    },
    "deferred.csv": {
        "month": "2026-12", "recognized": "2213.42", "billed": "9900.00", "taken_back": "0.00", "bad_debt": "0.00",
        "deferred_start": "0.00", "deferred_end": "7686.58", "unbilled_end": "0.00",
    },
    "usage.csv": {"month": "2026-12", "amount": "245.15"},
    "recovery.csv": {
        "month": "2026-12", "cases": "2", "recovered": "0", "percent": "0.0", "amount": "350.00",
        "recovered_amount": "0.00", "amount_percent": "0.0", "running": "2",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
async def test_each_table_has_a_file(reader: Reader, name: str) -> None:
    (row,) = [each for each in await reader.file(f"{name}?currency=usd") if each["month"] == "2026-12"]
    assert row == FILES[name]


async def test_a_cohort_has_a_column_for_each_month(reader: Reader) -> None:
    rows = {row["month"]: row for row in await reader.file("cohorts.csv?currency=usd")}
    assert [rows["2026-10"][f"percent_{age}"] for age in range(1, 4)] == ["57.1", "107.1", "107.1"]
    assert (rows["2026-10"]["accounts"], rows["2026-10"]["first"]) == ("3", "700.00")


@pytest.mark.parametrize(("month", "count"), [("2026-10", 4), ("2026-12", 5), ("2026-08", 0), ("", 17)])
async def test_the_movements_of_a_month_or_of_all(reader: Reader, month: str, count: int) -> None:
    path = f"movements.csv?currency=usd&month={month}" if month else "movements.csv?currency=usd"
    rows = await reader.file(path)
    assert len(rows) == count
    if month == "2026-12":
        assert rows[0] == {
            "account": "hana", "day": "2026-12-01", "kind": "New", "before": "0.00", "after": "700.00",
            "change": "700.00",
        }  # fmt: skip


async def test_a_low_recovery_is_marked_once_nothing_can_raise_it(reader: Reader) -> None:
    words = await reader.words()
    assert words.count("25.0 %, low") == 2
    # The cases of December are still open.
    assert words.count(", low") == 2


async def test_currencies_are_never_added(reader: Reader) -> None:
    usd, eur = await reader.words("?currency=usd"), await reader.words("?currency=eur")
    assert ("€80.00" in eur, "€80.00" in usd, "$2,200.00" in eur, "$2,200.00" in usd) == (True, False, False, True)
    assert await reader.words("") == usd


async def test_a_name_is_only_a_text(reader: Reader) -> None:
    answer = await reader.client.get(f"/revenue/{token()}/months/2026-11?currency=eur")
    assert ("<kai>" in answer.text, "&lt;kai&gt;" in answer.text) == (False, True)


BAD = {
    "ended": token(-1), "of a customer": signed("", ms(NOW) + DAY_MS, SECRET, CUSTOMER), "none": "x",
    "of another secret": signed("", ms(NOW) + DAY_MS, "y" * 40),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", ["", "months/2026-10", "mrr.csv", "elsewhere"])
async def test_only_a_link_of_finance_opens_it(reader: Reader, name: str, path: str) -> None:
    answer = await reader.client.get(f"/revenue/{BAD[name]}/{path}")
    assert (answer.status_code, "$" in answer.text) == (404, False)


@pytest.mark.parametrize("path", ["months/2026-1", "months/2020-01", "nothing.csv", "movements.csv?month=x", "a/b/c"])
async def test_what_is_not_there_is_said(reader: Reader, path: str) -> None:
    assert (await reader.client.get(f"/revenue/{token()}/{path}")).status_code == 404


async def test_another_currency_is_said(reader: Reader) -> None:
    answer = await reader.client.get(f"/revenue/{token()}/?currency=<b>")
    assert (answer.status_code, "<b>" in answer.text) == (404, False)


@pytest.mark.parametrize("error", [Transient("no answer"), InvalidInput("catalog", "none is applied")])
async def test_a_store_that_does_not_answer_is_said(reader: Reader, error: Exception) -> None:
    reader.books.error = error
    assert (await reader.client.get(f"/revenue/{token()}/")).status_code == 503


async def test_a_business_without_revenue_has_a_page(reader: Reader) -> None:
    shown = reader.books.shown
    reader.books.shown = Figures(shown.now_ms, shown.starts_ms, [], [], [], [], [], [])
    assert "no invoice is final" in await reader.words()


async def test_nothing_of_it_is_kept_elsewhere(reader: Reader) -> None:
    headers = (await reader.client.get(f"/revenue/{token()}/")).headers
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
