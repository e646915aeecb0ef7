"""A chart of usage by day, drawn on the server: an SVG without a script, and the same numbers as a table."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from portal.markup import Html, h, table
from portal.view import ChartView
from portal.words import number_text

HEIGHT: Final = 120
STEP: Final = 20
_GAP: Final = 4
# Room for the day under the first and the last bar.
_FOOT: Final = 18


def chart(view: ChartView) -> Html:
    """The bars of a meter. The highest day has the whole height; a day with little usage has a bar of one pixel."""
    top = max((units for _, units in view.days), default=Decimal(0))
    width = STEP * len(view.days)
    bars = []
    for number, (day, units) in enumerate(view.days):
        height = 0 if top <= 0 else max(1 if units > 0 else 0, int(max(units, Decimal(0)) * HEIGHT / top))
        title = h("title", f"{day}: {number_text(units)} {view.unit}")
        place = {"x": STEP * number, "y": HEIGHT - height, "width": STEP - _GAP, "height": height, "rx": 2}
        bars.append(h("rect", title, class_="bar", **place))
    first, last = view.days[0][0], view.days[-1][0]
    words = f"{view.name} by day from {first} to {last}; at most {number_text(top)} {view.unit} a day"
    foot = HEIGHT + _FOOT - 3
    ends = h("text", first, x=0, y=foot), h("text", last, x=width - _GAP, y=foot, text_anchor="end")
    box = f"0 0 {width} {HEIGHT + _FOOT}"
    drawn = h("svg", h("title", words), *bars, *ends, viewBox=box, role="img", aria_label=words)
    rows = [(day, number_text(units)) for day, units in reversed(view.days) if units]
    numbers = table(("Day", view.unit.capitalize()), rows, "", numbers=(view.unit.capitalize(),))
    peak = h("p", f"Most on one day: {number_text(top)} {view.unit}", class_="soft")
    more = h("details", h("summary", "The numbers"), numbers)
    return h("figure", h("figcaption", view.name), drawn, peak, more, class_="chart")
