"""Credits on the customer's page: what is left, until when, what a customer should hear, and a pack that is bought."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from pipeline.credits.giving import Gift, give
from pipeline.credits.packs import unpack
from portal.balances import banners, pool_views
from portal.tokens import signed
from schemas.clock import DAY_MS
from schemas.credit_balances import AccountBalance, CreditsOfPool, GrantBalance
from schemas.stripe_credits import Source
from tests.worlds.credited import credit_stores
from tests.worlds.paged import SECRET, Paged

START_MS: Final = int(datetime(2027, 11, 1, tzinfo=UTC).timestamp()) * 1_000
POOL: Final = """\
credit_pools:
  prepaid: {unit: call, covers: {api_requests: 1}, overdraft: block, packs: {p100: {credits: 100, usd: "25.00"}},
            top_up: {below: 20, pack: p100, month_max: 2}}
"""


def balance(*, left: int | None = 5, credits_: int = 100, mode: str = "ledger", **more: object) -> AccountBalance:
    grant = GrantBalance("cg_1", "promotional", credits_, left, 50, START_MS, START_MS + 60 * DAY_MS, "open")
    fields: dict[str, object] = {
        "pool": "prepaid_calls", "unit": "usd" if mode == "stripe" else "call", "exponent": 2 * (mode == "stripe"),
        "mode": mode, "overdraft": "block", "left": left, "is_estimate": mode == "stripe", "as_of_ms": None, "owed": 0,
        "undrawn": 0, "held": 0, "grants": (grant,), "packs": (), "top_up_below": 20,
    }  # fmt: skip
    pool = CreditsOfPool(**{**fields, **more})  # type: ignore[arg-type]  # of the fields' types
    return AccountBalance("acme", START_MS, START_MS, (pool,), ())


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        pytest.param(balance(left=50), [], id="enough"),
        pytest.param(balance(), [("wait", "You have only 5 calls left in prepaid calls.")], id="low"),
        pytest.param(balance(left=5, top_up_below=None), [], id="no threshold"),
        pytest.param(
            balance(left=0), [("bad", "You have no credits left in prepaid calls.")], id="blocks"
        ),
        pytest.param(
            balance(left=0, overdraft="bill"),
            [("wait", "You have no credits left in prepaid calls. More usage is billed.")], id="bills",
        ),
        pytest.param(
            balance(left=0, overdraft="next"), [("wait", "You have no credits left in prepaid calls.")], id="next pool"
        ),
        pytest.param(balance(left=0, grants=()), [], id="never had any"),
        pytest.param(balance(left=None), [], id="not known"),
        pytest.param(None, [], id="no answer"),
    ],
)  # fmt: skip
def test_a_customer_hears_of_few_credits(found: AccountBalance | None, wanted: list[tuple[str, str]]) -> None:
    assert list(banners(found)) == wanted


@pytest.mark.parametrize(
    ("found", "left", "grants", "note"),
    [
        (balance(), "5 calls left", (("5 of 100", "a gift, until December 31"),), ""),
        (balance(left=1, owed=3), "1 call left", (("1 of 100", "a gift, until December 31"),),
         "3 calls are owed, and the next credits pay them first."),
        (balance(left=1250, credits_=5000, mode="stripe"), "$12.50 left",
         (("$12.50 of $50.00", "a gift, until December 31"),),
         "An estimate: usage is taken off when its invoice is made."),
        (balance(left=None), "not known at the moment", (("not known of 100", "a gift, until December 31"),), ""),
    ],
    ids=["ours", "owed", "at Stripe", "not known"],
)  # fmt: skip
def test_what_is_left_is_said_in_words(
    found: AccountBalance, left: str, grants: tuple[tuple[str, str], ...], note: str
) -> None:
    (view,) = pool_views(found, "usd")
    assert (view.name, view.left, view.grants, view.note) == ("Prepaid calls", left, grants, note)


async def test_a_pack_is_bought_on_the_page_and_two_clicks_are_one_purchase(tmp_path: Path) -> None:
    business = Paged(START_MS)
    await business.begin_selling(POOL)
    stores = credit_stores(business)
    gift = Gift("acme", "prepaid", 40, Source.PROMOTIONAL, 50, START_MS, START_MS + 60 * DAY_MS, "ann", "sorry", "1")
    await give(stores.packs, gift)
    async with business.opened(tmp_path) as gateway:
        home = f"/page/{signed('acme', START_MS + DAY_MS, SECRET)}/"
        business.used = Decimal(30)
        page = await gateway.client.get(home)
        shown = html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.text)))
        assert "Prepaid 10 calls left 40 of 40 a gift, until December 31" in shown
        assert "You have only 10 calls left in prepaid." in shown
        assert "Buy 100 calls for $25.00" in shown

        form = re.search(r'action="credits">(.*?)</form>', page.text, re.S) or re.search(
            r"(<form.*?Buy.*?</form>)", page.text, re.S
        )
        assert form
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[1]))
        first, second = [await gateway.client.post(f"{home}credits", data=fields) for _ in range(2)]
        assert (first.status_code, first.text) == (200, second.text)
        (purchase,) = await business.sql.packs.of_account("acme")
        assert html.escape(purchase.url) in first.text
        assert purchase.return_url.endswith(f"{home}?bought={purchase.id}")

        back = f"{home}?bought={purchase.id}"
        assert "Nothing was paid so far." in (await gateway.client.get(back)).text
        business.pays(purchase.session)
        await business.settle()
        await unpack(stores.packs)
        assert "Thank you: your credits have arrived." in (await gateway.client.get(back)).text
        other = await gateway.client.get(f"/page/{signed('globex', START_MS + DAY_MS, SECRET)}/?bought={purchase.id}")
        assert "credits have arrived" not in other.text
