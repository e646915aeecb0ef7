"""`POST /v1/access/check` and `GET /v1/accounts/{account}/entitlements`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from pipeline.access.overriding import Wish, grant_wishes
from pipeline.http.models import AccessAnswer
from schemas.clock import MINUTE_MS
from schemas.entitlements import EntitlementVersion, Operation
from schemas.errors import Transient
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import Business, subscribe
from tests.worlds.gateway import Gateway, running


class Served(NamedTuple):
    """A gateway over a business."""

    gateway: Gateway
    business: Business

    async def check(self, body: Any, key: str = "read", request_key: str = "") -> tuple[int, Any]:
        content = {"json": body} if not isinstance(body, bytes) else {"content": body}
        headers = self.gateway.bearer(key) | ({"Idempotency-Key": request_key} if request_key else {})
        answer = await self.gateway.client.post("/v1/access/check", headers=headers, **content)
        document = answer.json()
        for each in document.get("answers", [document] if answer.is_success else []):
            AccessAnswer.model_validate(each)
        return answer.status_code, document

    async def hold(self, quantity: str = "400", request_key: str = "", account: str = "acme") -> Any:
        """The hold that a check takes, or None."""
        body = {"account": account, "feature": "tokens", "quantity": quantity, "hold_s": 60}
        status, answer = await self.check(body, "check", request_key)
        assert status == 200
        return answer["hold"]

    async def end(self, path: str, body: bytes = b"", key: str = "check") -> tuple[int, Any]:
        """Use or release a hold."""
        headers = self.gateway.bearer(key)
        answer = await self.gateway.client.post(f"/v1/access/holds/{path}", headers=headers, content=body)
        return answer.status_code, answer.json()


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """One linked account without a subscription."""
    business = Business()
    await business.open()
    business.price = business.stripe.price()
    await business.apply(catalog_of(SMALL), {"seat": business.price})
    business.customer = business.stripe.customer()
    await business.link("acme", business.customer)
    await business.settle()
    access = (business.checks, business.sql.entitlements)
    async with running(tmp_path, business, access=lambda: access) as gateway:
        yield Served(gateway, business)


async def test_a_denied_check_says_why_and_what_would_allow_it(served: Served) -> None:
    status, answer = await served.check({"account": "acme", "feature": "sso"})

    assert status == 200
    assert {name: answer[name] for name in ("allowed", "reason", "type", "upgrade", "fallback", "gives")} == {
        "allowed": False, "reason": "not_in_plan", "type": "flag", "fallback": False, "gives": [],
        "upgrade": {
            "plan": "team@1",
            "due_now": {"minor": 0, "currency": "usd", "exponent": 2},
            "words": "team includes it: nothing today, then the usage from December 10.",
        },
    }  # fmt: skip
    assert answer["freshness"]["version"] == 1


async def test_a_denied_limit_names_the_add_on_and_how_many(served: Served) -> None:
    subscribe(served.business)
    await served.business.settle()
    served.business.used = Decimal(9_000)
    _, answer = await served.check({"account": "acme", "feature": "tokens"})

    assert (answer["reason"], answer["upgrade"]) == ("limit_reached", {
        "addon": "boost@1", "quantity": 1, "due_now": {"minor": 500, "currency": "usd", "exponent": 2},
        "words": "The add-on boost includes it: $5.00 today, then $5.00 a month from December 10.",
    })  # fmt: skip


async def test_an_allowed_check_has_the_numbers(served: Served) -> None:
    subscribe(served.business)
    await served.business.settle()
    _, answer = await served.check({"account": "acme", "feature": "tokens", "quantity": "4000.5"})

    names = ("allowed", "reason", "limit", "used", "remaining", "included", "overage")
    assert {name: answer.get(name) for name in names} == {
        "allowed": True, "reason": "included", "limit": "9000", "used": "0", "remaining": "9000", "included": "5000",
        "overage": {"quantity": "0", "so_far": None, "cap": None},
    }  # fmt: skip
    assert [give["id"] for give in answer["gives"]] == ["team@1"]


async def test_a_list_is_answered_in_its_order(served: Served) -> None:
    _, answer = await served.check([{"account": "acme", "feature": name} for name in ("tokens", "sso", "reporting")])

    assert [(each["feature"], each["allowed"]) for each in answer["answers"]] == [
        ("tokens", True), ("sso", False), ("reporting", False),
    ]  # fmt: skip


async def test_seats_are_counted_by_the_caller(served: Served) -> None:
    answers = [await served.check({"account": "acme", "feature": "seats", "used": used}) for used in ("0", "1")]

    assert [(answer["allowed"], answer["reason"]) for _, answer in answers] == [
        (True, "within_limit"), (False, "seats_full"),
    ]  # fmt: skip


BAD = {
    "no JSON": (b"{", 400, "invalid_input"),
    "deep": (b"[" * 50_000, 400, "invalid_input"),
    "no feature": ({"account": "acme"}, 400, "invalid_input"),
    "another field": ({"account": "acme", "feature": "sso", "hold": 1}, 400, "invalid_input"),
    "an empty list": ([], 400, "invalid_input"),
    "too many": ([{"account": "acme", "feature": "sso"}] * 101, 400, "invalid_input"),
    "an unknown feature": ({"account": "acme", "feature": "nothing"}, 400, "invalid_input"),
    "the included quantity of a meter": ({"account": "acme", "feature": "included:tokens"}, 400, "invalid_input"),
    "an empty account": ({"account": "", "feature": "sso"}, 400, "invalid_input"),
    "a negative quantity": ({"account": "acme", "feature": "tokens", "quantity": "-1"}, 400, "invalid_input"),
    "a huge quantity": ({"account": "acme", "feature": "tokens", "quantity": "1" + "0" * 18}, 400, "invalid_input"),
    "not a number": ({"account": "acme", "feature": "tokens", "quantity": "NaN"}, 400, "invalid_input"),
    "a number that is no text": ({"account": "acme", "feature": "tokens", "quantity": 1}, 400, "invalid_input"),
}


@pytest.mark.parametrize(("body", "status", "code"), BAD.values(), ids=BAD)
async def test_bad_input_is_named(served: Served, body: Any, status: int, code: str) -> None:
    found, answer = await served.check(body)

    assert (found, answer["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("key", "account", "status"),
    [("", "acme", 401), ("ingest", "acme", 403), ("acme", "acme", 200), ("acme", "globex", 403)],
)
async def test_a_key_reaches_its_account_alone(served: Served, key: str, account: str, status: int) -> None:
    assert (await served.check({"account": account, "feature": "sso"}, key))[0] == status


async def test_what_was_allowed_then(served: Served) -> None:
    before = served.business.clock.now_ms()
    served.business.clock.advance(MINUTE_MS)
    subscribe(served.business)
    await served.business.settle()
    path = "/v1/accounts/acme/entitlements"
    now, then, never = [
        await served.gateway.get(path, **parameters)
        for parameters in ({}, {"at": _text(before)}, {"at": "2020-01-01T00:00:00Z"})
    ]

    assert [now.json()["features"]["sso"]["value"], then.json()["features"]["sso"]["value"]] == ["true", "false"]
    assert now.json()["cause"] in {event["id"] for event in served.business.stripe.happened()}
    assert (never.status_code, never.json()["error"]["code"]) == (404, "no_entitlements")
    assert not any(":" in name for name in now.json()["features"])


async def test_what_a_person_granted_says_who_and_why(served: Served) -> None:
    """Also afterwards: it is kept with the version."""
    subscribe(served.business)
    wish = Wish("acme", "tokens", Operation.ADD, "500", None, "ann", "ticket 1")
    now_ms = served.business.clock.now_ms()
    await grant_wishes(served.business.checks.catalog, served.business.sql.entitlements, [wish], now_ms)
    await served.business.settle()
    answer = (await served.gateway.get("/v1/accounts/acme/entitlements")).json()

    plan, override = answer["features"]["tokens"]["gives"]
    assert ("plan", None, None, None) == tuple(plan[name] for name in ("source", "by", "reason", "granted_at"))
    assert {"by": "ann", "reason": "ticket 1", "granted_at": _text(now_ms), "value": "500"}.items() <= override.items()


async def test_a_quantity_is_held_until_it_is_used_or_given_back(served: Served) -> None:
    first, second, third = [await served.hold() for _ in range(3)]
    used = await served.end(f"{first['id']}/use", b'{"quantity":"100"}')
    again = await served.end(f"{first['id']}/use", b'{"quantity":"100"}')
    released = await served.end(f"{second['id']}/release")
    _, answer = await served.check({"account": "acme", "feature": "tokens"})

    assert {name: first[name] for name in ("account", "feature", "quantity", "state", "used")} == {
        "account": "acme", "feature": "tokens", "quantity": "400", "state": "held", "used": None,
    }  # fmt: skip
    assert third is None
    assert used == again == (200, {**first, "state": "used", "used": "100"})
    assert released == (200, {**second, "state": "released", "used": "0"})
    assert (answer["held"], "hold" in answer) == ("100", False)


async def test_a_repeated_request_gets_the_same_hold(served: Served) -> None:
    first, again = [await served.hold("700", "job 1") for _ in range(2)]
    status, answer = await served.check(
        {"account": "acme", "feature": "tokens", "quantity": "5", "hold_s": 60}, "check", "job 1"
    )

    long = await served.check({"account": "acme", "feature": "tokens"}, "check", "k" * 201)

    assert first == again
    assert (status, answer["error"]["field"]) == (400, "Idempotency-Key")
    assert (long[0], long[1]["error"]["field"]) == (400, "Idempotency-Key")


ENDED = {
    "used with another quantity": ("use", b'{"quantity":"7"}'),
    "used with all": ("use", b""),
    "released after its use": ("release", b""),
}


@pytest.mark.parametrize(("how", "body"), ENDED.values(), ids=ENDED)
async def test_a_hold_ends_once(served: Served, how: str, body: bytes) -> None:
    held = await served.hold()
    await served.end(f"{held['id']}/use", b'{"quantity":"100"}')
    status, answer = await served.end(f"{held['id']}/{how}", body)

    assert (status, answer["error"]["code"]) == (409, "hold_ended")


async def test_a_hold_whose_time_is_over_is_not_used(served: Served) -> None:
    held = await served.hold()
    served.business.clock.advance(MINUTE_MS + 1)
    status, answer = await served.end(f"{held['id']}/use")

    assert (status, answer["error"]["code"]) == (409, "hold_ended")
    assert "expired" in answer["error"]["message"]


BAD_ENDS = {
    "more than is held": ("use", b'{"quantity":"401"}', 400),
    "negative": ("use", b'{"quantity":"-1"}', 400),
    "no text": ("use", b'{"quantity":1}', 400),
    "no JSON": ("use", b"{", 400),
    "another field": ("use", b'{"amount":"1"}', 400),
}


@pytest.mark.parametrize(("how", "body", "status"), BAD_ENDS.values(), ids=BAD_ENDS)
async def test_bad_ends_of_holds_are_named(served: Served, how: str, body: bytes, status: int) -> None:
    held = await served.hold()
    found, answer = await served.end(f"{held['id']}/{how}", body)

    assert (found, answer["error"]["code"]) == (status, "invalid_input")


@pytest.mark.parametrize(
    ("key", "account", "statuses"),
    [
        ("", "acme", (401, 401, 401)), ("ingest", "acme", (403, 403, 403)), ("read", "acme", (200, 403, 403)),
        ("operator", "acme", (403, 403, 403)), ("check", "acme", (200, 200, 200)), ("acme", "acme", (200, 200, 200)),
        ("acme", "globex", (403, 403, 404)),
    ],
)  # fmt: skip
async def test_who_may_check_and_hold(served: Served, key: str, account: str, statuses: tuple[int, ...]) -> None:
    held = await served.hold("1", account=account)
    check = {"account": account, "feature": "tokens"}

    assert (
        (await served.check(check, key))[0],
        (await served.check({**check, "hold_s": 60}, key))[0],
        (await served.end(f"{held['id']}/use", key=key))[0],
    ) == statuses


async def test_no_hold_is_taken_in_a_list(served: Served) -> None:
    status, answer = await served.check([{"account": "acme", "feature": "tokens", "hold_s": 60}], "check")

    assert (status, answer["error"]["field"]) == (400, "hold_s")


async def test_an_unknown_hold(served: Served) -> None:
    status, answer = await served.end("hold_1/use")

    assert (status, answer["error"]["code"]) == (404, "no_hold")


def _text(instant_ms: int) -> str:
    from aggregators.instants import format_instant_ms

    return format_instant_ms(instant_ms)


@pytest.mark.parametrize(("access", "status"), [(None, 501), (lambda: None, 503)], ids=["not configured", "not yet"])
async def test_without_sql_there_is_no_answer(tmp_path: Path, access: Any, status: int) -> None:
    async with running(tmp_path, access=access) as gateway:
        served = Served(gateway, Business())
        assert (await served.check({"account": "acme", "feature": "sso"}))[0] == status
        assert (await gateway.get("/v1/accounts/acme/entitlements")).status_code == status


async def test_a_store_that_hangs_delays_a_list_as_long_as_one_check(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.Barrier(20)

    async def hangs(_self: object, _accounts: Sequence[str]) -> Mapping[str, EntitlementVersion]:
        await waiting.wait()
        raise Transient("PostgreSQL does not answer")

    monkeypatch.setattr(type(served.business.sql.entitlements), "latest", hangs)
    async with asyncio.timeout(60):
        status, answer = await served.check([{"account": f"account {n}", "feature": "sso"} for n in range(20)])

    assert (status, {each["reason"] for each in answer["answers"]}) == (200, {"fallback_deny"})


@pytest.mark.parametrize("name", ["%00", "hold_%00", "h%C3%B6ld", "%F0%9F%98%80", "a'b"])
async def test_odd_names_of_holds_are_unknown(served: Served, name: str) -> None:
    for way in ("use", "release"):
        status, answer = await served.end(f"{name}/{way}")
        assert (status, answer["error"]["code"]) == (404, "no_hold")
