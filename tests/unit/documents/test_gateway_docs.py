"""docs/http-api.md and docs/emitter.md agree with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from emitter import Emitter

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


def test_the_test_transport_of_the_documentation_works() -> None:
    """The test runs the example unchanged."""
    example = EMITTER.split("```python\n")[2].partition("```")[0]

    exec(example, {})  # noqa: S102  # the documentation's own code
