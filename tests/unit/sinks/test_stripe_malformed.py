"""Answers 200 of Stripe, or of a proxy in its name, that lack what Stripe documents: the call can be repeated."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx
import pytest

from schemas.billing_events import ObjectKind, ObjectName
from schemas.errors import Transient
from sinks.stripe.catalog import StripeClientCatalog
from sinks.stripe.invoices import StripeClientInvoices

SUBSCRIPTION: Final = ObjectName(ObjectKind.SUBSCRIPTION, "sub_1")
EMPTY: Final = {"object": "list", "data": [], "has_more": False}

Call = Callable[[StripeClientInvoices], Awaitable[object]]
CALLS: Final[dict[str, Call]] = {
    "fetch": lambda client: client.fetch(SUBSCRIPTION),
    "events": lambda client: client.events(0, 1),
    "names": lambda client: client.names(ObjectKind.INVOICE),
    "the next names": lambda client: client.names(ObjectKind.INVOICE, "in_1"),
    "endpoints": lambda client: client.endpoints(),
    "page": lambda client: client.page(ObjectKind.SUBSCRIPTION, "", 0),
    "features": lambda client: client.active_features("cus_1"),
    "billing": lambda client: client.billing_of("cus_1", 0),
}
ANSWERS: Final[dict[str, Any]] = {
    "nothing": {},
    "an object without its fields": {"object": "subscription"},
    "data that is no list": {"object": "list", "data": {"id": "sub_1"}, "has_more": False},
    "no has_more": {"object": "list", "data": [{"id": "sub_1"}]},
    "a row without an id": {"object": "list", "data": [{"object": "event"}], "has_more": True},
    "a row that is a text": {"object": "list", "data": ["sub_1"], "has_more": False},
    "an id that is a number": {"object": "list", "data": [{"id": 7}], "has_more": False, "id": 7},
    "an object whose nested list has no rows": {"id": "sub_1", "object": "subscription", "items": {"has_more": False}},
    "an object without its nested list": {"id": "sub_1", "object": "subscription", "data": None},
}  # fmt: skip


def answering(client: Any, answer: Any) -> None:
    """Have a client get the same answer to every call."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=json.dumps(answer)))
    client._transport._client = httpx.AsyncClient(transport=transport)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_an_answer_without_stripes_form_can_be_asked_for_again(call: Call, answer: Any) -> None:
    """A KeyError would end the process, and say nothing of Stripe."""
    client = StripeClientInvoices("sk_test_1")
    answering(client, answer)

    with pytest.raises(Transient, match="not an answer of Stripe"):
        await call(client)

    await client.close()


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_malformed_list_of_the_catalog_can_be_asked_for_again(answer: Any) -> None:
    client = StripeClientCatalog("sk_test_1", scope="test:acct_1", nonce="n")
    answering(client, answer)

    with pytest.raises(Transient, match="not an answer of Stripe"):
        await client.read()

    await client.close()


async def test_an_empty_list_is_an_answer() -> None:
    client = StripeClientInvoices("sk_test_1")
    answering(client, EMPTY)

    assert [] == await client.names(ObjectKind.INVOICE)
    await client.close()
