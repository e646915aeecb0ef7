"""Markup that escapes every text, and the parts that all pages share. No page has a script or a style of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from starlette.responses import Response

# Elements that have no content and no end.
_VOID: Final = frozenset({"input", "br", "hr", "img", "meta", "link"})
STYLESHEET: Final = Path(__file__).parent / "style.css"


class Html(str):
    """Markup; every other text is escaped."""

    __slots__ = ()


def h(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` is the attribute `class`; an attribute that is False is left out, and True has no value."""
    names = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not False
    )
    end = "" if tag in _VOID else f"</{tag}>"
    return Html(f"<{tag}{names}>{join(*children)}{end}")


def join(*children: object) -> Html:
    """Markup and texts, one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def template(folder: Path, name: str, /, **values: object) -> Html:
    """The file `name.html` of a folder with its values."""
    return Html(_template(folder / f"{name}.html").substitute({key: join(value) for key, value in values.items()}))


@cache
def _template(path: Path) -> Template:
    return Template(path.read_text("utf-8"))


def page_response(
    markup: Html, status: int = 200, *, form_to: str = "", frames: str = "", live: bool = False
) -> Response:
    """A whole page with the headers that keep it apart from others. `form_to`: an origin to which a form of the page
    may redirect. `frames`: the origins whose pages may embed the page, separated by spaces; "" for none. `live`: the
    page has a script of ours, which asks for parts of the page again."""
    ancestors = frames or "'none'"
    policy = f"default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'self' {form_to}"
    policy += "; script-src 'self'; connect-src 'self'" if live else ""
    headers = {
        "Content-Security-Policy": f"{policy.strip()}; frame-ancestors {ancestors}",
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(markup, status, headers, "text/html; charset=utf-8")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: object,
    *,
    numbers: Sequence[str] = (),
    stacks: bool = False,
) -> Html:
    """A table, or `empty` without rows. `numbers` are the heads of columns that are aligned to the right. If it
    `stacks`, a narrow screen shows each row as a card with the heads as labels."""

    def kind(head: str) -> object:
        return "number" if head in numbers else False

    lines = [
        h("tr", *(h("td", cell, data_head=head, class_=kind(head)) for head, cell in zip(heads, row, strict=True)))
        for row in rows
    ]
    if not lines:
        return h("p", empty, class_="empty")
    head_row = h("tr", *(h("th", name, scope="col", class_=kind(name)) for name in heads))
    return h("table", h("thead", head_row), h("tbody", *lines), class_="stacks" if stacks else False)


def link(text: object, target: str) -> Html:
    """A link."""
    return h("a", text, href=target)


def badge(status: str) -> Html:
    """A status; the stylesheet knows the good and the bad ones."""
    return h("span", status, class_=f"badge is-{status.replace(' ', '-')}")


def notice(text: str, kind: str = "bad") -> Html:
    """A message above the page, or nothing without a text."""
    return h("p", text, class_=f"notice {kind}", role="alert" if kind == "bad" else "status") if text else Html()
