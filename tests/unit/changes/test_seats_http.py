"""Seats over HTTP: who may ask, what is answered, and what bad requests are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest_asyncio

from pipeline.changes.parts import Parts
from pipeline.http.api_keys import Role, create_key
from schemas.clock import HOUR_MS
from tests.worlds.gateway import Gateway, running
from tests.worlds.seated import SEATS, Seated, seats_catalog

PATH: Final = "accounts/acme/seats"


class Served(NamedTuple):
    """A gateway over a business whose account acme has two seats."""

    gateway: Gateway
    business: Seated

    async def send(
        self, method: str, path: str = PATH, body: Any = None, key: str = "billing", **headers: str
    ) -> tuple[int, Any]:
        sent = self.gateway.bearer(key) | {name.replace("_", "-"): text for name, text in headers.items()}
        answer = await self.gateway.client.request(method, f"/v1/{path}", json=body, headers=sent)
        return answer.status_code, answer.json()

    async def add(self, holder: str, key: str = "billing", path: str = PATH, **more: Any) -> tuple[int, Any]:
        return await self.send("POST", path, {"feature": "seats", "holder": holder, **more}, key)

    async def code(self, method: str, path: str = PATH, body: Any = None, **headers: str) -> tuple[int, str, str]:
        status, answer = await self.send(method, path, body, **headers)
        return status, answer["error"]["code"], answer["error"].get("field", "")


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    business = Seated()
    await business.begin(seats_catalog())
    await business.subscribed(SEATS, quantity=2)
    await business.settle()

    async def changes() -> Parts:
        return business.parts()

    async with running(tmp_path, business, changes=changes) as gateway:
        keys = tmp_path / "keys.jsonl"
        more = {
            "billing": create_key(keys, Role.BILLING, business.clock)[0],
            "billing of acme": create_key(keys, Role.BILLING, business.clock, account="acme")[0],
            "billing of globex": create_key(keys, Role.BILLING, business.clock, account="globex")[0],
        }
        yield Served(Gateway(**{**vars(gateway), "keys": {**gateway.keys, **more}}), business)


async def test_a_seat_is_reserved_activated_and_released(served: Served) -> None:
    status, made = await served.add("user_1", reserve=True, by="ann")
    assert (status, made["state"], made["holder"], made["expires_at"]) == (
        201, "reserved", "user_1", "2027-03-07T23:59:58Z",
    )  # fmt: skip
    again = await served.add("user_1", reserve=True)
    assert again == (200, made)
    one = f"{PATH}/{made['id']}"
    status, active = await served.send("POST", f"{one}/activate", {"by": "ann"})
    assert (status, active["state"], active["expires_at"]) == (200, "active", None)
    assert await served.send("POST", f"{one}/activate") == (200, active)
    status, listed = await served.send("GET")
    assert (status, listed["seats"]) == (200, [active])
    assert listed["features"] == [
        {"feature": "seats", "held": 1, "reserved": 0, "active": 1, "allowed": "2", "quantity": 2, "can_grow": True}
    ]
    status, released = await served.send("POST", f"{one}/release")
    assert (status, released["state"]) == (200, "released")
    assert await served.send("POST", f"{one}/release") == (200, released)
    assert await served.code("POST", f"{one}/activate") == (409, "seat_released", "seat")
    assert (await served.send("GET"))[1]["seats"] == []
    trail = [row.actor.partition(" (")[0] for row in await served.business.sql.audit("acme") if row.entity == "seat"]
    assert (trail[0], trail[1]) == ("ann", "ann")


async def test_a_key_names_a_request(served: Served) -> None:
    body = {"feature": "seats", "holder": "user_1"}
    first = await served.send("POST", body=body, idempotency_key="k1")
    await served.send("POST", f"{PATH}/{first[1]['id']}/release")
    again = await served.send("POST", body=body, idempotency_key="k1")
    assert (first[0], again[0], again[1]["id"], again[1]["state"]) == (201, 200, first[1]["id"], "released")
    other = {"feature": "seats", "holder": "user_2"}
    assert await served.code("POST", body=other, idempotency_key="k1") == (400, "invalid_input", "Idempotency-Key")
    assert await served.code("POST", body=other, idempotency_key="k" * 257) == (
        400, "invalid_input", "Idempotency-Key",
    )  # fmt: skip
    assert (await served.send("POST", body=body, idempotency_key="k2"))[0] == 201


async def test_full_seats_name_what_would_allow_more(served: Served) -> None:
    """An account without a plan has one seat; a paid plan sells more."""
    await served.business.link("globex", "cus_globex")
    await served.business.settle()
    path = "accounts/globex/seats"
    assert (await served.add("hq", path=path))[0] == 201
    status, full = await served.add("branch", path=path)
    assert (status, full["error"]["code"], full["error"]["field"]) == (409, "seats_full", "holder")
    assert full["error"]["message"] == (
        "all 1 seats are held: release one, or take another plan: Small with 2 seats includes it: $10.00 today, then "
        "$10.00 a month from March 28."
    )
    assert (await served.send("GET", path))[1]["features"][0]["can_grow"] is False


async def test_seats_are_listed_in_pages(served: Served) -> None:
    for number in range(3):
        await served.add(f"user_{number}")
    _, first = await served.send("GET", f"{PATH}?limit=2&feature=seats")
    _, second = await served.send("GET", f"{PATH}?limit=2&cursor={first['next_cursor']}")
    assert [len(page["seats"]) for page in (first, second)] == [2, 1]
    assert {seat["holder"] for page in (first, second) for seat in page["seats"]} == {"user_0", "user_1", "user_2"}
    assert "next_cursor" not in second


async def test_bad_requests_name_the_field_and_the_remedy(served: Served) -> None:
    for body, field in (
        ({"feature": "chairs", "holder": "a"}, "feature"), ({"feature": "seats", "holder": " "}, "holder"),
        ({"feature": "seats", "holder": "\0"}, "holder"),
    ):  # fmt: skip
        assert await served.code("POST", body=body) == (400, "invalid_input", field)
    shapes: list[Any] = [{"feature": "seats"}, {"feature": "seats", "holder": "a", "x": 1}, [], {"holder": "a" * 257}]
    for wrong in shapes:
        assert (await served.code("POST", body=wrong))[:2] == (400, "invalid_input")
    assert await served.code("POST", body={"feature": "seats", "holder": "a", "by": "\0"}) == (
        400, "invalid_input", "by",
    )  # fmt: skip
    assert (await served.send("GET", f"{PATH}?feature=%00"))[1]["seats"] == []
    for verb in ("activate", "release"):
        assert await served.code("POST", f"{PATH}/seat_1/{verb}") == (404, "no_seat", "seat")
        assert (await served.code("POST", f"{PATH}/seat_1/{verb}", {"who": 1}))[0] == 400


async def test_an_expired_invitation_is_asked_for_again(served: Served) -> None:
    _, made = await served.add("user_1", reserve=True)
    served.business.clock.ms += 168 * HOUR_MS
    assert await served.code("POST", f"{PATH}/{made['id']}/activate") == (409, "seat_released", "seat")
    status, again = await served.add("user_1", reserve=True)
    assert (status, again["id"] != made["id"]) == (201, True)


WHO: Final = {
    "": 401, "ingest": 403, "read": 403, "check": 403, "billing": 201, "billing of acme": 201, "billing of globex": 403,
    "operator": 201, "admin": 201,
}  # fmt: skip


async def test_who_may_give_and_see_seats(served: Served) -> None:
    given = {key: (await served.add(f"user of {key}", key))[0] for key in WHO}
    moved = {key: (await served.send("POST", f"{PATH}/seat_1/release", key=key))[0] for key in WHO}
    seen = {key: (await served.send("GET", key=key))[0] for key in WHO}

    assert given == WHO
    assert moved == {key: 404 if status == 201 else status for key, status in WHO.items()}
    assert seen == {key: 200 if status == 201 or key == "read" else status for key, status in WHO.items()}
