"""Features, product features, and the entitlements that follow subscriptions."""

from __future__ import annotations

from typing import Any

import pytest

from stripe_simulator.store import Object
from tests.services.stripe_sdk import Sdk

SUMMARY = "entitlements.active_entitlement_summary.updated"


async def _setup(sdk: Sdk) -> dict[str, str]:
    """The products `basic` with the feature `a` and `pro` with `a` and `b`. Returns the ids of the features."""
    sdk.simulator.create_customer(False, {}, "cus_one")
    features = {}
    for key in ("a", "b"):
        features[key] = (await sdk("v1.entitlements.features.create", {"name": key, "lookup_key": key}))["id"]
    for product, keys in (("prod_basic", "a"), ("prod_pro", "ab")):
        sdk.simulator.test.store.put({"id": product, "object": "product", "active": True})
        for key in keys:
            await sdk("v1.products.features.create", product, {"entitlement_feature": features[key]})
    return features


def _subscribe(sdk: Sdk, product: str, status: str = "active", identifier: str = "sub_1") -> None:
    """Save what entitlements read of a subscription."""
    body: Object = {"id": identifier, "object": "subscription", "customer": "cus_one", "status": status}
    body["items"] = {"data": [{"price": {"product": product}}]}
    sdk.simulator.test.store.save(body)


async def _active(sdk: Sdk) -> list[str]:
    listed = await sdk("v1.entitlements.active_entitlements.list", {"customer": "cus_one"})
    return sorted(entitlement["lookup_key"] for entitlement in listed["data"])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("active", ["a", "b"]),
        ("trialing", ["a", "b"]),
        ("past_due", ["a", "b"]),
        ("paused", ["a", "b"]),
        ("incomplete", []),
        ("incomplete_expired", []),
        ("unpaid", []),
        ("canceled", []),
    ],
)
async def test_status_decides(sdk: Sdk, status: str, expected: list[str]) -> None:
    """Whether a subscription entitles to the features of its product."""
    await _setup(sdk)
    _subscribe(sdk, "prod_pro", status)

    assert await _active(sdk) == expected


async def test_entitlements_follow_the_product(sdk: Sdk) -> None:
    """With one event for each change of the set, which contains the whole set."""
    features = await _setup(sdk)
    _subscribe(sdk, "prod_basic")
    _subscribe(sdk, "prod_basic", "past_due")
    _subscribe(sdk, "prod_pro")
    listed = await sdk("v1.entitlements.active_entitlements.list", {"customer": "cus_one", "expand": ["data.feature"]})
    assert {row["lookup_key"]: row["feature"]["id"] for row in listed["data"]} == features
    _subscribe(sdk, "prod_basic", identifier="sub_2")
    _subscribe(sdk, "prod_pro", "canceled")
    assert await _active(sdk) == ["a"]
    _subscribe(sdk, "prod_basic", "canceled", "sub_2")

    stored: list[Any] = list(sdk.simulator.test.store.newest("event"))
    summaries = [event["data"]["object"] for event in stored[::-1] if event["type"] == SUMMARY]
    sets = [sorted(row["lookup_key"] for row in summary["entitlements"]["data"]) for summary in summaries]
    assert sets == [["a"], ["a", "b"], ["a"], []]
    assert len((await sdk("v1.events.list", {"type": SUMMARY}))["data"]) == 4


async def test_features_are_kept(sdk: Sdk) -> None:
    """Their lookup keys are unique."""
    feature = await sdk("v1.entitlements.features.create", {"name": "A", "lookup_key": "a", "metadata": {"x": "y"}})
    assert (await sdk("v1.entitlements.features.list", {"lookup_key": "a"}))["data"] == [feature]
    assert (await sdk("v1.entitlements.features.list", {"lookup_key": "b"}))["data"] == []
    assert await sdk("v1.entitlements.features.retrieve", feature["id"]) == feature
    error = await sdk.error("v1.entitlements.features.create", {"name": "B", "lookup_key": "a"})
    assert (error["status"], error["param"]) == (400, "lookup_key")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("products.features.create", ("prod_none", {"entitlement_feature": "feat_none"}), (404, "id")),
        ("products.features.create", ("prod_pro", {"entitlement_feature": "feat_none"}), (400, "entitlement_feature")),
        ("entitlements.active_entitlements.list", ({"customer": "cus_none"},), (400, "customer")),
    ],
    ids=["unknown product", "unknown feature", "unknown customer"],
)
async def test_unknown_ids(sdk: Sdk, name: str, arguments: tuple[Any, ...], error: tuple[int, str]) -> None:
    """404 for an id of the path, 400 for another one."""
    await _setup(sdk)
    body = await sdk.error(f"v1.{name}", *arguments)

    assert (body["status"], body["param"], body["code"]) == (*error, "resource_missing")
