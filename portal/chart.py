"""A chart of usage by day, drawn on the server: an SVG without a script, and the same numbers as a table."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from portal.markup import Html, h, table
from portal.view import ChartView
from portal.words import number_text, quantity_head

HEIGHT: Final = 120
STEP: Final = 20
_GAP: Final = 4


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
    line = h("line", x1=0, y1=HEIGHT, x2=width - _GAP, y2=HEIGHT)
    box = f"0 0 {width - _GAP} {HEIGHT + 1}"
    drawn = h("svg", h("title", words), *bars, line, viewBox=box, role="img", aria_label=words)
    axis = h("p", h("span", first), h("span", last), class_="soft axis", aria_hidden="true")
    rows = [(day, number_text(units)) for day, units in reversed(view.days) if units]
    numbers = table(("Day", quantity_head(view.unit)), rows, "", numbers=(quantity_head(view.unit),))
    peak = h("p", f"Most on one day: {number_text(top)} {view.unit}", class_="soft")
    more = h("details", h("summary", "The numbers"), numbers)
    return h("figure", h("figcaption", view.name, " by day"), drawn, axis, peak, more, class_="chart")
