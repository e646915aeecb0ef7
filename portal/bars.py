"""Charts of recurring revenue by month, drawn on the server: SVG without a script. The tables have the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from portal.figures import KINDS, Figures, money, month_words, months_of
from portal.markup import Html, h
from portal.render import card
from portal.words import signed_money
from schemas.revenue import MonthRevenue, MovementKind

WIDTH: Final = 640
HEIGHT: Final = 140
MONTHS_MIN: Final = 6
_GAP: Final = 6
_GAINS: Final = (MovementKind.NEW, MovementKind.REACTIVATION, MovementKind.EXPANSION)


def bars(figures: Figures, currency: str) -> Html:
    """Two charts: recurring revenue at the end of each month, and what changed in it."""
    months = list(reversed(months_of(figures, currency)))
    return h("div", _ends(months), _changes(months), class_="cards")


def _ends(months: Sequence[MonthRevenue]) -> Html:
    top, step = max(1, *(each.end_minor for each in months)), _step(months)
    drawn = [
        _bar(place * step, each.end_minor * HEIGHT // top, HEIGHT, step, "bar", _words(each, each.end_minor))
        for place, each in enumerate(months)
    ]
    last = months[-1]
    said = f"Recurring revenue by month, {_words(last, last.end_minor)}"
    return card("Recurring revenue", _figure(months, drawn, said, HEIGHT), h("p", f"{said}.", class_="soft"))


def _changes(months: Sequence[MonthRevenue]) -> Html:
    """What came stands on the line, what went hangs below it."""
    up = max(sum(each.changes.get(kind, 0) for kind in _GAINS) for each in months)
    down = max(-sum(minor for kind, minor in each.changes.items() if kind not in _GAINS) for each in months)
    whole, step, drawn = max(1, up + down), _step(months), list[Html]()
    line = up * HEIGHT // whole
    for place, each in enumerate(months):
        above = below = 0
        for number, kind in enumerate(KINDS):
            minor = each.changes.get(kind, 0)
            height = abs(minor) * HEIGHT // whole
            if not height:
                continue
            words = f"{KINDS[kind]}, {_words(each, minor)}"
            above += height if kind in _GAINS else 0
            below += 0 if kind in _GAINS else height
            bottom = line - above + height if kind in _GAINS else line + below
            drawn.append(_bar(place * step, height, bottom, step, f"part-{number}", words))
    drawn.append(h("line", x1=0, y1=line, x2=WIDTH, y2=line))
    keys = [h("li", h("span", "", class_=f"key part-{number}"), head) for number, head in enumerate(KINDS.values())]
    chart = _figure(months, drawn, "What changed recurring revenue, by month; the table below has the amounts", HEIGHT)
    return card("What changed it", chart, h("ul", *keys, class_="keys"))


def _step(months: Sequence[MonthRevenue]) -> int:
    """The width of a month; the first months of a business do not fill the chart."""
    return WIDTH // max(MONTHS_MIN, len(months))


def _bar(x: int, height: int, bottom: int, step: int, kind: str, words: str) -> Html:
    place = {"x": x, "y": bottom - height, "width": step - _GAP, "height": height}
    return h("rect", h("title", words), class_=kind, **place)


def _figure(months: Sequence[MonthRevenue], drawn: Sequence[Html], words: str, height: int) -> Html:
    ground = h("line", x1=0, y1=height, x2=WIDTH, y2=height)
    svg = h("svg", h("title", words), *drawn, ground, viewBox=f"0 0 {WIDTH} {height + 1}", role="img", aria_label=words)
    ends = dict.fromkeys(month_words(each.start_ms) for each in (months[0], months[-1]))
    axis = h("p", *(h("span", each) for each in ends), class_="soft axis", aria_hidden="true")
    return h("figure", svg, axis, class_="chart")


def _words(month: MonthRevenue, minor: int) -> str:
    return f"{month_words(month.start_ms)}: {signed_money(money(month.currency, minor))}"
