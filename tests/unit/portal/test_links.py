"""Links to the page: what must be set, and what a file of secrets may say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.http.page_links import PageSecrets, load_page_secrets, page_link
from pipeline.settings import Settings, load_settings
from portal.tokens import account_of
from schemas.errors import InvalidInput
from tests.worlds.gateway import running

NOW_MS = 1_800_000_000_123
SECRET = "s" * 32


@pytest.mark.parametrize(
    ("content", "secrets"),
    [
        (None, ()),
        ("", ()),
        (f"# new\n{'n' * 40}  # since May\n\n{SECRET}\n", ("n" * 40, SECRET)),
        (f"{'s' * 31}\n", "line 1: a secret has 32 to 256 characters"),
        (f"{SECRET}\n{'s' * 16} {'s' * 16}\n", "line 2: a secret has 32 to 256 characters"),
        (f"{SECRET}\n" * 11, "more than 10 secrets"),
    ],
    ids=["no file", "empty", "two", "short", "space", "too many"],
)
def test_a_file_of_secrets(tmp_path: Path, content: str | None, secrets: tuple[str, ...] | str) -> None:
    path = tmp_path / "page_secrets"
    if content is not None:
        path.write_text(content)

    if isinstance(secrets, tuple):
        assert load_page_secrets(path) == secrets
    else:
        with pytest.raises(InvalidInput, match=re.escape(secrets)):
            load_page_secrets(path)


@pytest.mark.parametrize(
    ("settings", "secrets", "account", "life_s", "field"),
    [
        ({"page_url": ""}, (SECRET,), "acme", 60, "TIDEMARK_PAGE_URL"),
        ({}, (), "acme", 60, "TIDEMARK_PAGE_SECRETS"),
        ({}, (SECRET,), "", 60, "account"),
        ({}, (SECRET,), "acme", 59, "expires_in_s"),
        ({}, (SECRET,), "acme", 2_592_001, "expires_in_s"),
    ],
    ids=["no address", "no secret", "no account", "too short", "too long"],
)
def test_what_a_link_needs(
    settings: dict[str, Any], secrets: tuple[str, ...], account: str, life_s: int, field: str
) -> None:
    given = Settings(**{"page_url": "https://billing.example", **settings})

    with pytest.raises(InvalidInput) as refused:
        page_link(given, secrets, account, life_s, NOW_MS)

    assert refused.value.field == field


def test_a_link_ends_with_a_second_and_keeps_a_path_of_the_proxy() -> None:
    given = Settings(page_url="https://example.com/billing/")

    made = page_link(given, (SECRET, "o" * 32), "a/b é", 60, NOW_MS)

    address, _, token = made.url.rstrip("/").rpartition("/page/")
    assert (address, made.expires_ms) == ("https://example.com/billing", 1_800_000_060_000)
    assert account_of(token, (SECRET,), made.expires_ms - 1) == "a/b é"
    assert account_of(token, (SECRET,), made.expires_ms) is None


@pytest.mark.parametrize(
    "frames", ["app.example", "https://app.example/path", "'self'", "https://a.example;script-src *"],
    ids=["no scheme", "path", "keyword", "directive"],
)  # fmt: skip
def test_an_origin_that_may_embed_the_page_is_one(frames: str) -> None:
    """It becomes a part of a policy."""
    with pytest.raises(InvalidInput, match="is no origin"):
        load_settings(page_frames=frames)


def test_without_a_file_there_are_no_secrets() -> None:
    assert PageSecrets(Settings())() == ()


async def test_a_gateway_without_the_settings_shows_no_page(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        made = await gateway.client.post("/v1/accounts/acme/page", headers=gateway.bearer("admin"))
        page = await gateway.client.get("/page/anything/")

    assert (made.status_code, made.json()["error"]["code"]) == (501, "not_configured")
    assert page.status_code == 404
