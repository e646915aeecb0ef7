"""Credits as markup: the card of the account's page, and the way to Stripe's page on which a pack is paid."""

from __future__ import annotations

from portal.balances import PoolView
from portal.markup import Html, h, link
from portal.render import card, frame, hidden_form
from schemas.packs import Purchase, PurchaseState


def credits_card(views: tuple[PoolView, ...]) -> Html:
    """The card of the account's page."""
    parts: list[object] = []
    for view in views:
        parts += [h("h3", view.name), h("p", view.left, class_="total")]
        rows = [h("li", left, h("span", words, class_="soft")) for left, words in view.grants]
        parts += [h("ul", *rows, class_="holders")] if rows else []
        parts += [h("p", view.note, class_="soft")] if view.note else []
        buttons = [hidden_form("credits", each.label, quiet=True, **each.fields) for each in view.packs]
        parts += [h("div", *buttons, class_="row")] if buttons else []
    return card("Credits", *parts)


def payment_page(purchase: Purchase, root: str) -> Html:
    """The way to Stripe's page. A form may not lead to another site, and no frame may show Stripe's pages."""
    words = "You pay for the credits at a page of Stripe, and come back here. The page is open for half an hour."
    way = h("a", "Go on to Stripe", href=purchase.url, class_="button", target="_top")
    return frame("Payment", root, h("h1", "Payment"), h("p", words), h("p", way, " ", link("Back", root)))


def outcome_words(purchase: Purchase, *, has_arrived: bool) -> tuple[str, str]:
    """What became of a purchase: good news, and a problem."""
    if purchase.state is PurchaseState.FAILED:
        return "", f"The credits were not bought: {purchase.detail}"
    if has_arrived:
        return "Thank you: your credits have arrived.", ""
    if purchase.state is PurchaseState.PAID:
        return "Thank you: your credits arrive within seconds.", ""
    return "", "Nothing was paid so far. Your credits arrive as soon as you have paid."
