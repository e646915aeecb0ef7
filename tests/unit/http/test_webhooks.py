"""`POST /v1/stripe/webhook`: a delivery is answered with 2xx only after the log has its bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import stripe

from aggregators.partitioning import partition_of
from pipeline.http import webhooks
from schemas.control import Genesis
from schemas.errors import InvalidInput, Transient
from schemas.log import BILLING_EVENTS_TOPIC, Record
from tests.worlds.deployment import World
from tests.worlds.gateway import NOW_MS, Gateway, running

ACCOUNT = "acct_ours"
SECRET = "whsec_ours"
PATH = "/v1/stripe/webhook"


def body(**changes: Any) -> str:
    """A snapshot event of a customer of ours, with changes."""
    thing = {"object": "customer", "id": "cus_1", "name": "Zoë"}
    document = {
        "object": "event", "id": "evt_1", "type": "customer.updated", "created": NOW_MS // 1000, "livemode": False,
        "data": {"object": thing}, **changes,
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False)


def signed(text: str, secret: str = SECRET, at_ms: int = NOW_MS) -> dict[str, str]:
    """The headers of a delivery, signed by stripe-python."""
    header = stripe.WebhookSignature.generate_signature_header(text, secret, timestamp=at_ms // 1000)
    return {"stripe-signature": header, "content-type": "application/json"}


def options(tmp_path: Path, world: World, **more: Any) -> dict[str, Any]:
    """A gateway's dependencies with a file of secrets, of our account in test mode."""
    path = tmp_path / "secrets"
    if not path.exists():
        path.write_text(f"# made in November\n{SECRET}\n\n")
    genesis = Genesis(log_id="a log", partitions=world.partitions, stripe_account=ACCOUNT)
    return {"settings": {"stripe_webhook_secrets": path}, "genesis": genesis, **more}


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that takes webhooks."""
    world = World(NOW_MS)
    async with running(tmp_path, world, **options(tmp_path, world)) as gateway:
        yield gateway


async def kept(gateway: Gateway) -> list[Record]:
    """The records of `billing.events`."""
    world = gateway.world
    return [record for part in range(world.partitions) for record in await world.records(part, BILLING_EVENTS_TOPIC)]


async def post(gateway: Gateway, text: str, headers: dict[str, str] | None = None) -> int:
    """Deliver a body; the status of the answer."""
    content = text.encode()
    answer = await gateway.client.post(PATH, content=content, headers=signed(text) if headers is None else headers)
    return answer.status_code


async def test_a_signed_delivery_is_kept_unchanged_under_its_customer(gateway: Gateway) -> None:
    """The bytes are what Stripe signed; a proof needs them as they came."""
    assert 200 == await post(gateway, body())
    (record,) = await kept(gateway)
    assert (body().encode(), b"cus_1", (("tidemark-via", b"webhook"),)) == (record.value, record.key, record.headers)
    assert partition_of("cus_1", gateway.world.partitions) == record.partition


async def test_each_delivery_is_kept_also_a_repeated_one(gateway: Gateway) -> None:
    """The processor finds repetitions; the door keeps no state."""
    assert [200, 200] == [await post(gateway, body()) for _ in range(2)]
    assert 2 == len(await kept(gateway))


async def test_the_door_needs_no_api_key_and_takes_no_other_method(gateway: Gateway) -> None:
    """Stripe has no key of ours; the signature is the key."""
    assert 405 == (await gateway.client.get(PATH)).status_code
    assert 200 == await post(gateway, body())


UNSIGNED = {
    "no_header": {},
    "forgery": {"stripe-signature": f"t={NOW_MS // 1000},v1={'a' * 64}"},
    "old": signed(body(), at_ms=NOW_MS - 301_000),
    "ahead": signed(body(), at_ms=NOW_MS + 301_000),
    "of_another_endpoint": signed(body(), "whsec_other"),
    "of_another_body": signed(body(id="evt_2")),
}


@pytest.mark.parametrize("headers", UNSIGNED.values(), ids=UNSIGNED)
async def test_what_stripe_did_not_sign_is_refused_and_not_kept(gateway: Gateway, headers: dict[str, str]) -> None:
    """Anybody may send to this path; nobody may fill the log."""
    assert 400 == await post(gateway, body(), headers)
    assert ([], []) == (await kept(gateway), await gateway.quarantined())


HOSTILE = {
    "no_json": ("{", "bad_stripe_event"),
    "empty": ("", "bad_stripe_event"),
    "a_list": ("[1]", "bad_stripe_event"),
    "deep": ("[" * 50_000, "bad_stripe_event"),
    "no_mode": (body(livemode=None), "bad_stripe_event"),
    "live_mode": (body(livemode=True), "foreign_stripe_event"),
    "another_account": (body(account="acct_other"), "foreign_stripe_event"),
}


@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE)
async def test_a_signed_body_that_is_not_ours_is_kept_aside_and_answered(
    gateway: Gateway, text: str, reason: str
) -> None:
    """Stripe would repeat it for three days, and an operator must see it."""
    assert 200 == await post(gateway, text)
    (entry,) = await gateway.quarantined()
    headers = dict(entry.headers)
    assert (text.encode(), reason.encode(), b"billing.events") == (
        entry.value, headers["tidemark-reason"], headers["tidemark-topic"],
    )  # fmt: skip
    assert [] == await kept(gateway)


async def test_a_body_above_the_limit_is_refused(gateway: Gateway) -> None:
    """Stripe's events are far smaller; the log's records are bounded."""
    assert 413 == await post(gateway, body(filler="x" * 1024 * 1024))


async def test_secrets_change_without_a_restart_and_a_mistake_keeps_the_old_ones(
    gateway: Gateway, tmp_path: Path
) -> None:
    """A rotation: both secrets, then the new one only; a line that is no secret locks nobody out."""
    path = tmp_path / "secrets"
    path.write_text(f"{SECRET}\nwhsec_new\n")
    assert [200, 200] == [await post(gateway, body(), signed(body(), secret)) for secret in (SECRET, "whsec_new")]
    path.write_text("whsec_new\n")
    assert [400, 200] == [await post(gateway, body(), signed(body(), secret)) for secret in (SECRET, "whsec_new")]
    path.write_text("sk_test_mistake\n")
    assert 200 == await post(gateway, body(), signed(body(), "whsec_new"))
    path.unlink()
    assert 400 == await post(gateway, body(), signed(body(), "whsec_new"))


async def test_a_log_that_fails_or_hangs_is_answered_with_503(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then Stripe repeats the delivery. A 2xx before the append would lose it."""

    async def fails(*_arguments: object, **_more: object) -> int:
        raise Transient("Kafka did not answer", retry_after_s=3)

    async def hangs(*_arguments: object, **_more: object) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(webhooks, "ANSWER_TIMEOUT_S", 0.05)
    for append in (fails, hangs):
        monkeypatch.setattr(gateway.world.log, "append", append)
        assert [503, 503] == [await post(gateway, body()), await post(gateway, "{")]


async def test_deliveries_beyond_the_limit_are_answered_with_503(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of millions must not fill the memory."""
    monkeypatch.setattr(webhooks, "IN_FLIGHT_MAX", 0)
    assert 503 == await post(gateway, body())


async def test_without_the_setting_the_path_says_what_to_set(tmp_path: Path) -> None:
    """Most deployments start without webhooks."""
    world = World(NOW_MS)
    async with running(tmp_path, world) as gateway:
        answer = await gateway.client.post(PATH, content=b"{}")
    assert (501, True) == (answer.status_code, "TIDEMARK_STRIPE_WEBHOOK_SECRETS" in answer.text)


@pytest.mark.parametrize(
    "content", ["pk_live_1\n", "\n".join(["whsec_1"] * 11), "whsec_" + "x" * 70_000], ids=["other", "many", "large"]
)
async def test_a_broken_file_of_secrets_stops_the_start_with_the_setting(tmp_path: Path, content: str) -> None:
    """At the start there are no earlier secrets to go on with."""
    (tmp_path / "secrets").write_text(content)
    world = World(NOW_MS)
    with pytest.raises(InvalidInput, match="TIDEMARK_STRIPE_WEBHOOK_SECRETS"):
        async with running(tmp_path, world, **options(tmp_path, world)):
            pass
