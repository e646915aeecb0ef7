"""The results of a run, as a table and as one line of JSON."""

from __future__ import annotations

import json
from typing import NamedTuple


class Figure(NamedTuple):
    """A measurement. `per_event_us` is the cost of an event, if the figure has one; the report divides it by the cost
    of the bare consume-and-decode. `verdict` is "met" or "missed" if there is a target."""

    section: str
    name: str
    value: float
    unit: str
    per_event_us: float | None = None
    note: str = ""
    verdict: str = ""


class Report:
    """The figures in order. `bare_us` is the cost of the bare consume-and-decode per event."""

    def __init__(self, machine: dict[str, str]) -> None:
        self.machine = machine
        self.bare_us = 0.0
        self.failures: list[str] = []
        self._figures: list[Figure] = []

    def add(self, *figures: Figure) -> None:
        """Add figures."""
        self._figures.extend(figures)

    def fail(self, what: str) -> None:
        """Record an error. Figures of a pipeline with wrong counts are worthless."""
        self.failures.append(what)

    def ratio(self, figure: Figure) -> float | None:
        """The cost of an event as a multiple of the bare consume-and-decode."""
        return figure.per_event_us / self.bare_us if figure.per_event_us is not None and self.bare_us else None

    def table(self) -> str:
        """The figures as a table."""
        lines = [f"{name:10} {value}" for name, value in self.machine.items()]
        if self.bare_us:
            lines.append(f"bare       {self.bare_us:.2f} µs per event: consume from Kafka and decode, nothing else")
        section = ""
        for figure in self._figures:
            if figure.section != section:
                section = figure.section
                lines += ["", f"{section:58} {'value':>12} {'':9} {'µs/event':>9} {'× bare':>7}"]
            cost = "" if figure.per_event_us is None else f"{figure.per_event_us:.2f}"
            ratio = self.ratio(figure)
            note = " ".join(part for part in (figure.verdict.upper(), figure.note) if part)
            lines.append(
                f"  {figure.name:56} {_number(figure.value):>12} {figure.unit:9} {cost:>9} "
                f"{'' if ratio is None else f'{ratio:.2f}':>7}  {note}".rstrip()
            )
        lines += ["", *(f"FAILED: {failure}" for failure in self.failures)]
        return "\n".join(lines).rstrip()

    def json(self) -> str:
        """The figures as one line of JSON."""
        figures = [{**figure._asdict(), "ratio": self.ratio(figure)} for figure in self._figures]
        document = {
            "machine": self.machine, "bare_us": self.bare_us, "figures": figures, "failures": self.failures
        }  # fmt: skip
        return json.dumps(document, ensure_ascii=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
