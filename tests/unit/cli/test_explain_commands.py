"""The command `explain` on its files."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.cli.explain import invoice_text
from pipeline.commands.explain import export
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.explained import Check, InvoiceExplanation, LineExplanation, Priced
from schemas.periods import Period
from schemas.upgrades import Money


async def test_what_another_export_writes_is_left_alone(tmp_path: Path) -> None:
    """Two people export one invoice into one file at once."""
    part = tmp_path / "file.part"
    part.write_text("the first one's")

    with pytest.raises(InvalidInput, match="another export writes the file"):
        await export(Settings(secret=SecretStr("x" * 64)), "in_1", "acme", "", tmp_path / "file")

    assert part.read_text() == "the first one's"


def test_what_the_steps_of_a_price_share_is_said_once() -> None:
    """Three lines of one usage were explained three times, word for word."""
    steps = ("the first 10,000", 0), ("the next 90,000", 18_000), ("the next 37,510", 3_751)

    def line(at: int) -> LineExplanation:
        priced = tuple(Priced(text, Decimal(1), cents, place == at) for place, (text, cents) in enumerate(steps))
        return LineExplanation(
            "ada", "in_1", f"il_{at}", "usage", "api: calls", Period(0, 1), "1", Money(steps[at][1], "usd", 2),
            ("137,510 calls were used.", *(("The last step.",) if at == 2 else ())),
            priced, (Check("the parts", "21751", "21751"),), meter="calls",
        )  # fmt: skip

    base = LineExplanation("ada", "in_1", "il_9", "paid_ahead", "api: base", Period(0, 1), "1", Money(4_900, "usd", 2),
                           ("1 × base.",), (Priced("1 × base", Decimal(1), 4_900, True),))  # fmt: skip
    found = InvoiceExplanation("ada", "in_1", "paid", Money(26_651, "usd", 2), (base, line(0), line(1), line(2)), ())

    assert list(invoice_text(found)) == [
        "in_1 of ada: $266.51",
        "",
        "il_9  api: base  1  $49.00",
        "  1 × base.",
        "    1 × base: $49.00  ← this line",
        "",
        "il_0  api: calls  1  $0.00",
        "il_1  api: calls  1  $180.00",
        "il_2  api: calls  1  $37.51",
        "  137,510 calls were used.",
        "  The last step.",
        "    the first 10,000: $0.00",
        "    the next 90,000: $180.00",
        "    the next 37,510: $37.51",
        "  ok  the parts: 21751 = 21751",
        "",
    ]
