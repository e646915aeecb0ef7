"""A token opens the page of one account until its end, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.tokens import TOKEN_CHARACTERS_MAX, account_of, signed

NOW_MS = 1_800_000_000_000
OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32
HOUR_MS = 3_600_000
TOKEN = signed("acme", NOW_MS + HOUR_MS, OLD)
CONTENT, SIGNATURE = TOKEN.split(".")


@pytest.mark.parametrize(
    ("token", "secrets", "now_ms", "account"),
    [
        (TOKEN, [OLD], NOW_MS, "acme"),
        (TOKEN, [OLD], NOW_MS + HOUR_MS - 1, "acme"),
        (TOKEN, [OLD], NOW_MS + HOUR_MS, None),
        (TOKEN, [NEW, OLD], NOW_MS, "acme"),
        (TOKEN, [NEW], NOW_MS, None),
        (TOKEN, [], NOW_MS, None),
        (signed("acme", NOW_MS + HOUR_MS, NEW), [NEW, OLD], NOW_MS, "acme"),
        (f"{signed('globex', NOW_MS + HOUR_MS, OTHER).split('.')[0]}.{SIGNATURE}", [OLD], NOW_MS, None),
        (f"{CONTENT}.{SIGNATURE[:-1]}", [OLD], NOW_MS, None),
        (f"{CONTENT}.{SIGNATURE}=", [OLD], NOW_MS, None),
        (f"{CONTENT}A.{SIGNATURE}", [OLD], NOW_MS, None),
        (CONTENT, [OLD], NOW_MS, None),
        ("", [OLD], NOW_MS, None),
        (".", [OLD], NOW_MS, None),
        (f"{TOKEN}é", [OLD], NOW_MS, None),
        ("a" * (TOKEN_CHARACTERS_MAX + 1), [OLD], NOW_MS, None),
    ],
    ids=[
        "good", "last millisecond", "expired", "rotated", "old secret removed", "no secret", "new secret",
        "other account", "cut signature", "padded signature", "longer content", "no signature", "empty", "dot",
        "not ASCII", "too long",
    ],
)  # fmt: skip
def test_which_tokens_open_a_page(token: str, secrets: list[str], now_ms: int, account: str | None) -> None:
    assert account_of(token, secrets, now_ms) == account


@given(st.text(min_size=1, max_size=256), st.integers(1, 10**9))
def test_every_account_has_a_token_that_fits_into_an_address(account: str, life_s: int) -> None:
    token = signed(account, NOW_MS + life_s * 1_000, OLD)

    assert account_of(token, [OLD], NOW_MS) == account
    assert len(token) <= TOKEN_CHARACTERS_MAX
    assert not set(token) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("ABab01-_."))
def test_no_token_with_another_character_opens_a_page(place: int, character: str) -> None:
    altered = TOKEN[:place] + character + TOKEN[place + 1 :]

    assert account_of(altered, [OLD], NOW_MS) == ("acme" if altered == TOKEN else None)
