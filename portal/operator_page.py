"""The operator's page as markup: the boxes, an account, an explained invoice or event, and the forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from aggregators.instants import format_instant_ms
from aggregators.late_usage import text_of
from aggregators.quantities import decimal_text
from portal.explained import by_usage
from portal.markup import Html, badge, h, join, link, notice, table, template
from portal.operator_boxes import WORDS, Act, Box, Mood, Ref, boxes, verdict
from portal.operator_facts import AccountFacts, Away, OperatorFacts, RedriveLook
from portal.render import TEMPLATES, card
from portal.view import invoice_view
from portal.words import signed_money
from schemas.explained import Check, EventExplanation, InvoiceExplanation, LineExplanation
from schemas.intent_ledger import LedgerIntent

_MOODS: Final = {Mood.GOOD: "fine", Mood.WAIT: "watch", Mood.BAD: "wrong", Mood.AWAY: "not known"}
_NOTICES: Final = {Mood.GOOD: "good", Mood.WAIT: "wait", Mood.BAD: "bad", Mood.AWAY: "bad"}
# Of a report; of an event, late is something else.
_STATES: Final = {**WORDS, "late": "too late for its invoice: an invoice item bills it"}
HOURS_SHOWN: Final = 200


def frame(title: str, root: str, *children: object) -> Html:
    """A whole page. `root`: the way from the page's address to the front of the operator's page, such as `../`."""
    return template(TEMPLATES, "operator", title=title, root=root, body=join(*children))


def front(facts: OperatorFacts, said: str = "") -> Html:
    """The page. `said`: what became of a form."""
    form = h(
        "form",
        h("label", "Account, or invoice in_…", h("input", name="name", required=True, maxlength=256)),
        h("button", "Look", class_="quiet"),
        method="get", action="find", class_="row",
    )  # fmt: skip
    live = h("div", parts(facts), id="live")
    state = h("p", "As of the loading of the page.", id="live-state", class_="soft", role="status")
    return frame("Operations", "", h("h1", "Operations"), notice(said, "good"), form, live, state)


def parts(facts: OperatorFacts) -> Html:
    """What changes while the page is open: the verdict and the boxes."""
    made = boxes(facts)
    mood, line = verdict(made)
    head = h("p", h("strong", line), class_=f"notice {_NOTICES[mood]}", role="status")
    columns = h("div", *(h("div", *map(_box, made[place::2])) for place in (0, 1)), class_="columns")
    return join(head, columns, h("p", f"As of {format_instant_ms(facts.now_ms)}.", class_="soft"))


def _box(box: Box) -> Html:
    numbers = h(
        "dl",
        *(join(h("dt", name), h("dd", value, _explained(name))) for name, value in box.numbers),
        class_="facts",
    )
    listed = _rows(box)
    return card(
        box.title,
        h("p", badge(_MOODS[box.mood]), " ", box.line),
        numbers if box.numbers else "",
        listed,
        h("p", link("What to do", f"runbook/{box.runbook}"), class_="soft"),
    )


def _explained(name: str, words: Mapping[str, str] = WORDS) -> Html:
    """What a word means, if a newcomer cannot know that."""
    return h("small", words[name]) if name in words else Html()


def _rows(box: Box) -> Html:
    if not box.rows:
        return Html()
    rows = [[_cell(cell) for cell in row] for row in box.rows]
    return table(box.heads, rows, "", stacks=True)


def _cell(cell: object) -> object:
    return link(cell.text, cell.target) if isinstance(cell, Act | Ref) else cell


def account_page(facts: AccountFacts) -> Html:
    """One account: what will happen, what happened, its invoices and reports."""
    event = h(
        "form",
        h("label", "Event id", h("input", name="id", required=True, maxlength=1024)),
        h("button", "Where did it end?", class_="quiet"),
        method="get", action="event", class_="row",
    )  # fmt: skip
    first = [card("Timeline", _timeline(facts))]
    second = [
        card("Invoices", _invoices(facts)),
        card("Reports that are not billed", _intents(facts)),
        card("An event", event),
    ]
    return frame(
        f"Account {facts.account}", "../../",
        h("nav", link("Operations", "../../"), aria_label="Way back"),
        h("h1", f"Account {facts.account}"),
        h("div", h("div", *first), h("div", *second), class_="columns"),
    )  # fmt: skip


def _timeline(facts: AccountFacts) -> Html:
    found = facts.timeline
    if isinstance(found, Away):
        return h("p", f"Not known: {found.why}", class_="empty")
    items = []
    for entry in found.entries:
        who = f" ({entry.actor}, {entry.cause})" if entry.actor else ""
        mark = h("strong", "To come: ") if entry.is_future else ""
        items.append(h("li", h("span", _time(entry.at_ms), class_="soft day"), h("span", mark, entry.text, who)))
    older = h("p", link("Older", f"?before={found.before}")) if found.before is not None else ""
    return join(h("ul", *items, class_="plain told") if items else h("p", "Nothing happened.", class_="soft"), older)


def _time(instant_ms: int) -> str:
    """An instant to the second, in UTC."""
    return format_instant_ms(instant_ms)[:19].replace("T", " ")


def _invoices(facts: AccountFacts) -> Html:
    if isinstance(facts.invoices, Away):
        return h("p", f"Not known: {facts.invoices.why}", class_="empty")
    rows = []
    for row in facts.invoices:
        view = invoice_view(row, facts.now_ms)
        rows.append((link(view.day, f"invoices/{quote(view.id, safe='')}"), badge(view.state), view.amount))
    return table(("Date", "State", "Amount"), rows, "No invoice.", numbers=("Amount",))


def _intents(facts: AccountFacts) -> Html:
    if isinstance(facts.intents, Away):
        return h("p", f"Not known: {facts.intents.why}", class_="empty")
    rows = []
    for known in facts.intents:
        intent = known.intent
        quantity = f"{decimal_text(intent.delta_minor, intent.scale)} {intent.meter}"
        state = badge(f"{known.state.value} {known.hold}".strip())
        done = link("Look", f"../../reports/{intent.identifier}") if known.state.value == "dead" else ""
        rows.append((quantity, _time(intent.instant_ms), state, known.detail[:200], done))
    words = dict.fromkeys(known.hold or known.state.value for known in facts.intents)
    said = (h("p", f"{name}: {_STATES[name]}.", class_="soft") for name in words if name in _STATES)
    return join(table(("Quantity", "Of", "State", "Why", "What to do"), rows, "None.", stacks=True), *said)


def invoice_explained(found: InvoiceExplanation) -> Html:
    """Why an invoice says what it says."""
    cards = map(_lines, by_usage(found.lines))
    return frame(
        f"Why {found.invoice} says {signed_money(found.total)}", "../../../",
        h("nav", link(f"Account {found.account}", "../"), aria_label="Way back"),
        h("h1", f"Why the invoice says {signed_money(found.total)}"),
        _holds(holds=found.holds),
        *(h("p", each) for each in found.says),
        _summary(found),
        _checks(found.checks),
        *(notice(f"Not explained: {each}") for each in found.unexplained),
        *cards,
        h("p", "For a dispute: ", h("code", f"tidemark explain {found.invoice} --out FILE"), " writes a signed file."),
    )  # fmt: skip


def _summary(found: InvoiceExplanation) -> Html:
    """The lines and what they add up to."""
    rows: list[Sequence[object]] = [
        (line.text or line.line, _part_of(line), signed_money(line.amount)) for line in found.lines
    ]
    if not found.unexplained:
        rows.append((h("strong", "The invoice"), "", h("strong", signed_money(found.total))))
    return table(("Line", "What it bills", "Amount"), rows, "The invoice has no lines.", numbers=("Amount",))


def _part_of(line: LineExplanation) -> str:
    """The price of a line in words, or its quantity."""
    return next((part.text for part in line.priced if part.is_line or len(line.priced) == 1), line.quantity)


def _holds(*, holds: bool) -> Html:
    text = (
        "All of it is explained, and all numbers agree."
        if holds
        else "Something is not explained, or differs: see below."
    )
    return notice(text, "good" if holds else "bad")


def _lines(lines: Sequence[LineExplanation]) -> Html:
    """A line, or the lines of one usage: what is said of each of them, and proves them, is said once."""
    first = lines[0]
    total = first.amount._replace(minor=sum(line.amount.minor for line in lines))
    shared = [each for each in first.says if all(each in line.says for line in lines)]
    own = [f"{_part_of(line)}: {each}" for line in lines for each in line.says if each not in shared]
    unexplained = dict.fromkeys(each for line in lines for each in line.unexplained)
    return card(
        f"{first.text or first.line}: {signed_money(total)}",
        *(h("p", each) for each in (*shared, *own)),
        _priced(lines),
        _checks(first.checks),
        *(notice(f"Not explained: {each}") for each in unexplained),
        _hours(first),
    )


def _priced(lines: Sequence[LineExplanation]) -> Html:
    """The steps of a price. Of a line that stands alone, its own one is marked."""
    first = lines[0]
    rows = [
        (
            h("strong", part.text) if part.is_line and len(lines) == 1 < len(first.priced) else part.text,
            signed_money(first.amount._replace(minor=part.amount_minor)),
        )
        for part in first.priced
    ]
    return table(("Price", "Amount"), rows, "", numbers=("Amount",)) if rows else Html()


def _hours(line: LineExplanation) -> Html:
    if not line.hours:
        return Html()
    head = line.unit.capitalize() or "Quantity"
    rows = [(format_instant_ms(hour_ms), text_of(units)) for hour_ms, units in line.hours[:HOURS_SHOWN]]
    cut = h("p", f"The first {HOURS_SHOWN} hours are shown.", class_="soft") if len(line.hours) > HOURS_SHOWN else ""
    return h(
        "details", h("summary", f"{len(line.hours):,} hours"), table(("Hour", head), rows, "", numbers=(head,)), cut
    )


def _checks(checks: Sequence[Check]) -> Html:
    items = [h("li", badge("equal" if each.holds else "differs"), f" {each.what}: {each.equation}") for each in checks]
    return h("ul", *items, class_="plain") if items else Html()


def event_explained(found: EventExplanation) -> Html:
    """Where an event ended."""
    return frame(
        f"Event {found.id}", "../../",
        h("nav", link(f"Account {found.account}", "./"), aria_label="Way back"),
        h("h1", f"Event {found.id}"),
        h("p", badge(found.state)),
        *(h("p", each) for each in found.says),
        table(("What", "Value"), found.facts.items(), "The archive has nothing of it."),
        *_ended(found),
    )  # fmt: skip


def _ended(found: EventExplanation) -> Iterator[Html]:
    for each in found.ended:
        way = (
            h("p", link("Why this invoice says what it says", f"invoices/{quote(each.invoice, safe='')}"))
            if each.invoice
            else ""
        )
        yield card(f"{each.meter}: {each.value}", *(h("p", says) for says in each.says), way)


def report_page(known: LedgerIntent, again: str, leave: str) -> Html:
    """One report that Stripe refused, with the forms to send it again or to leave it, and the secret number of each."""
    intent = known.intent
    facts = [
        ("Account", intent.account), ("Customer", known.stripe_customer or "none"),
        ("Usage", f"{decimal_text(intent.delta_minor, intent.scale)} {intent.meter}"),
        ("Of", format_instant_ms(intent.instant_ms)),
        ("State", join(known.state.value, _explained(known.state.value, _STATES))), ("Why", known.detail),
    ]  # fmt: skip
    return frame(
        f"Report {intent.identifier}", "../",
        h("nav", link("Operations", "../"), aria_label="Way back"),
        h("h1", "A report that Stripe refused"),
        table(("What", "Value"), facts, ""),
        _form(
            "Send it again", f"{intent.identifier}/redrive", again,
            "Correct the cause first. Stripe bills the usage then; nothing is sent twice.",
        ),
        _form(
            "Leave it as it is", f"../accounts/{quote(intent.account, safe='')}/leave/{intent.identifier}", leave,
            "The usage is not billed, and this page no longer says that it is wrong.",
        ),
    )  # fmt: skip


def quarantine_page(look: RedriveLook, once: str) -> Html:
    """The quarantined events of one reason, and the form that sends those again which pass now."""
    facts = [
        ("Would pass now", f"{look.passing:,}"),
        ("Arrived again meanwhile, and do not count once more", f"{look.arrived:,}"),
        ("Older than the dedup window: the archive decides", f"{look.old:,}"),
        ("Count in no meter, and use up their ids", f"{look.unmetered:,}"),
        *(
            (f"Would be refused again as {now}, such as {detail}", f"{number:,}")
            for now, number, detail in look.failing
        ),
        ("Were kept in part: only their producer has them", f"{look.cut:,}"),
    ]
    part = "" if look.is_whole else h("p", "There are more entries than were looked at within some seconds.")
    form = _form(
        "Send them again", f"{quote(look.cause, safe='')}/redrive", once,
        "Correct the cause first. Those that pass are sent, in their order; each event counts once.",
    )  # fmt: skip
    return frame(
        f"Refused as {look.cause}", "../",
        h("nav", link("Operations", "../"), aria_label="Way back"),
        h("h1", f"Events that were refused as {look.cause}"),
        part,
        table(("What", "Events"), facts, ""),
        form if look.passing or not look.is_whole else "",
    )  # fmt: skip


def leave_page(account: str, what: str, once: str) -> Html:
    """The form that leaves a thing as it is."""
    return frame(
        f"Leave {what}", "../../../",
        h("nav", link("Operations", "../../../"), aria_label="Way back"),
        h("h1", f"Leave {what} as it is"),
        _form("Leave it as it is", quote(what, safe=""), once, f"{what} of {account} is shown as wrong no more."),
    )  # fmt: skip


def _form(title: str, target: str, once: str, about: str) -> Html:
    return card(
        title,
        h("p", about),
        h(
            "form",
            h("input", type="hidden", name="once", value=once),
            h("label", "Who are you?", h("input", name="by", required=True, maxlength=200, autocomplete="name")),
            h("label", "Why?", h("input", name="reason", required=True, maxlength=1000)),
            h("button", title),
            method="post", action=target, class_="fields",
        ),
    )  # fmt: skip


def text_page(title: str, text: str, root: str) -> Html:
    """A page of the runbook, as it is written."""
    return frame(
        title,
        root,
        h("nav", link("Operations", root), aria_label="Way back"),
        h("h1", title),
        h("pre", text, class_="page"),
    )
