"""Requests that schemathesis makes from the OpenAPI document; `make fuzz` takes longer and asks with every key."""

from __future__ import annotations

from tests.fuzz.api import fuzz_api, served


# Ten seconds on two cores that do nothing else.
def test_every_route_answers_as_the_document_says() -> None:
    """A program that was made from the document meets nothing that it does not know."""
    with served() as gateway:
        failures = fuzz_api(gateway, "admin", 1)

    assert not failures, failures
