"""docs/http-api.md and docs/emitter.md agree with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from emitter import Emitter
from emitter.testing import FakeEmitter

ROOT = Path(__file__).resolve().parents[3]
HTTP_API = (ROOT / "docs" / "http-api.md").read_text()
EMITTER = (ROOT / "docs" / "emitter.md").read_text()


def test_every_error_code_is_in_the_documentation_and_no_other() -> None:
    """A client that branches on the codes must find all of them."""
    sources = "".join(path.read_text() for path in (ROOT / "pipeline" / "http").glob("*.py"))
    raised = set(re.findall(r"ApiError\(\s*\d{3}, \"(\w+)\"", sources)) | {"not_found", "method_not_allowed"}
    listed = set(re.findall(r"`(\w+)`", HTTP_API.partition("Codes: ")[2].partition(". The reasons")[0]))

    assert raised == listed


def test_every_setting_of_the_emitter_is_in_its_documentation_with_its_default() -> None:
    """The table equals the signature."""
    settings = [
        parameter
        for parameter in inspect.signature(Emitter.__init__).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "source"
    ]
    table = EMITTER.partition("| argument |")[2].partition("\n\n")[0]

    assert [parameter.name for parameter in settings if f"`{parameter.name}`" not in table] == []
    for parameter in settings:
        if isinstance(parameter.default, int | float):
            assert f"{parameter.default:,}".replace(",", " ").removesuffix(".0") in table


def _examples(heading: str) -> list[str]:
    section = EMITTER.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_double_of_the_documentation_works() -> None:
    """The test runs the example unchanged."""
    (example,) = _examples("In tests of your application")

    exec(example, {})  # noqa: S102  # the documentation's own code


async def test_the_web_application_of_the_documentation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs the example unchanged, with the double instead of the emitter."""
    usage = FakeEmitter()
    monkeypatch.setattr("emitter.Emitter", lambda *_, **__: usage)
    names: dict[str, Any] = {}
    exec(_examples("A web application")[0], names)  # noqa: S102  # the documentation's own code

    async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/items/7", headers={"x-request-id": "r"})).json() == {"item": "7"}
        assert (await client.get("/unknown")).status_code == 404

    assert len(usage.emitted()) == 2
    (event,) = usage.accepted(type="api.request", account="acme")
    assert event.data == {"method": "GET", "route": "/items/{item}"}
