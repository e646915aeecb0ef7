"""The OpenAPI document, the pages for people, and the paths that a client may mistype."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator
from decimal import Decimal
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from pydantic import BaseModel

from pipeline.http import models
from pipeline.http.serving import Readiness, ops_app
from pipeline.metrics import Metrics
from pipeline.open import DEFAULT_CATALOG
from schemas.clock import DAY_MS
from schemas.holds import Hold
from schemas.journal import JournalStore
from schemas.log import Log
from schemas.notices import ChannelName, Notice, NoticeKind
from schemas.revenue import RevenueStores
from tests.unit.catalog.files import catalog_of
from tests.worlds.account_links import opened_links
from tests.worlds.business import Business
from tests.worlds.gateway import Gateway, event, running
from tests.worlds.relay import relay

ROOT: Final = Path(__file__).resolve().parents[3]
# Stripe calls it, and its signature is the key.
WEBHOOK_PATH = "/v1/stripe/webhook"
HTTP_API: Final = (ROOT / "docs" / "http-api.md").read_text()
# What these take is not done yet when they answer.
# The gateway of these tests has no Stripe; tests/unit/changes sends such requests.
OF_STRIPE: Final = {
    "/v1/accounts/{account}/quotes", "/v1/accounts/{account}/quotes/{quote}/accept",
    "/v1/accounts/{account}/changes/pending", "/v1/accounts/{account}/checkout", "/v1/accounts/{account}/portal",
    "/v1/plans", "/v1/accounts/{account}/seats",
    "/v1/accounts/{account}/seats/{seat}/activate", "/v1/accounts/{account}/seats/{seat}/release",
    "/v1/accounts/{account}/page", "/v1/accounts/{account}/timeline", "/v1/accounts/{account}/events/{event}/explain",
    "/v1/accounts/{account}/invoices/{invoice}/explain", "/v1/operator/page",
    "/v1/revenue/page", "/v1/corrections", "/v1/accounts/{account}/corrections",
    "/v1/accounts/{account}/invoices/{invoice}/lines/{line}/explain",
    *(f"/v1/accounts/{{account}}/credits{rest}" for rest in ("", "/grants", "/grants/{grant}/void", "/top-ups")),
}  # fmt: skip
TAKEN: Final = ("/v1/events", "/v1/accounts/{account}/flush")
SPAN: Final = "from=2026-11-21T00:00:00Z&to=2026-11-22T00:00:00Z"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose stores and log all work."""
    business = Business()
    await business.open()
    await business.apply(catalog_of(DEFAULT_CATALOG.read_text()), {})
    await business.link("acme", "cus_acme")
    await business.settle()
    for example in ("hold_5d41402abc4b2a76b9719d911017c592", "hold_7d793037a0760186574b0282f2f435e7"):
        now_ms = business.clock.now_ms()
        hold = Hold(example, "acme", "api_calls", Decimal(40), now_ms, now_ms + DAY_MS, is_metered=True)
        await business.sql.holds.take(hold, frozenset(), lambda _: True, None, now_ms)
    access = (business.checks, business.sql.entitlements)
    made = Notice("ntc_1", NoticeKind.LIMIT_WARNING, "acme", "api_calls", 0, 1, 80, '{"data": {"used": "812"}}', 0)
    await business.sql.notices.add([made], [ChannelName.WEBHOOK])

    async def revenue() -> RevenueStores:
        return RevenueStores(business.sql.catalog, business.sql.revenue, business.sql.invoice_books)

    async def journal() -> JournalStore:
        return business.sql.journal

    async with running(
        tmp_path,
        accounts=await opened_links(),
        access=lambda: access,
        notices=lambda: business.sql.notices,
        dunning=lambda: business.sql.dunning,
        revenue=revenue,
        journal=journal,
    ) as running_gateway:
        yield running_gateway


async def test_the_document_and_the_manual_list_the_same_paths(gateway: Gateway) -> None:
    """A path that only one of them lists does not exist for the readers of the other."""
    document = (await gateway.get("/openapi.json", key="")).json()
    described = {
        f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods if path != "/"
    }

    written = {f"{method} {path}" for method, path in re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?\s]+)", HTTP_API)}

    assert described == written


def schema_problems(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str = "$") -> list[str]:
    """Where a value differs from a JSON Schema, for the keywords that the document uses."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            fits = [choice for choice in schema[key] if not schema_problems(value, choice, document, where)]
            return [] if fits else [f"{where}: fits none of {key}"]
    types = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None), "boolean": bool}
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return [f"{where}: {value!r} is not of type {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is not one of {schema['enum']}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where}: {value!r} is not {schema['const']!r}"]
    if isinstance(value, list):
        return [
            problem
            for index, item in enumerate(value)
            for problem in schema_problems(item, schema.get("items", {}), document, f"{where}[{index}]")
        ]
    if not isinstance(value, dict):
        return []
    problems = [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        described = schema.get("properties", {}).get(name, others)
        if described is False:
            problems.append(f"{where}: {name} is not described")
        elif isinstance(described, dict):
            problems += schema_problems(item, described, document, f"{where}.{name}")
    return problems


ANSWERS: Final = [
    pytest.param("GET", "/", "/", 200, id="front"),
    pytest.param("GET", "/healthz", "/healthz", 200, id="alive"),
    pytest.param("GET", "/readyz", "/readyz", 200, id="ready"),
    pytest.param("GET", "/openapi.json", "/openapi.json", 200, id="document"),
    pytest.param("GET", "/v1/meters", "/v1/meters", 200, id="meters"),
    pytest.param("GET", "/v1/usage/current?account=acme", "/v1/usage/current", 200, id="current"),
    pytest.param("GET", "/v1/usage/current", "/v1/usage/current", 400, id="current without an account"),
    pytest.param("GET", "/v1/accounts/acme/usage", "/v1/accounts/{account}/usage", 200, id="current by path"),
    pytest.param("GET", f"/v1/usage?meter=tokens&window=day&{SPAN}", "/v1/usage", 200, id="over time"),
    pytest.param("GET", f"/v1/usage?meter=nothing&{SPAN}", "/v1/usage", 404, id="unknown meter"),
    pytest.param("GET", f"/v1/usage?meter=tokens&limit=1&group_by=account&{SPAN}", "/v1/usage", 200, id="a page"),
    pytest.param("GET", "/v1/usage/top?meter=tokens", "/v1/usage/top", 200, id="top"),
    pytest.param("GET", "/v1/meters/tokens/top", "/v1/meters/{meter}/top", 200, id="top by path"),
    pytest.param("GET", f"/v1/usage/periods?meter=tokens&account=acme&{SPAN}", "/v1/usage/periods", 200, id="periods"),
    pytest.param("POST", "/v1/accounts/acme/flush", "/v1/accounts/{account}/flush", 202, id="flush"),
    pytest.param("GET", "/v1/accounts/acme", "/v1/accounts/{account}", 200, id="account"),
    pytest.param("PUT", "/v1/accounts/acme", "/v1/accounts/{account}", 400, id="account without a customer"),
    pytest.param("GET", "/v1/billing/intents?state=pending", "/v1/billing/intents", 200, id="intents"),
    pytest.param("GET", "/v1/notices?account=acme", "/v1/notices", 200, id="notices"),
    pytest.param("GET", "/v1/dunning/cases?state=open", "/v1/dunning/cases", 200, id="dunning cases"),
    pytest.param("GET", "/v1/revenue/journal", "/v1/revenue/journal", 200, id="journal"),
    pytest.param("GET", "/v1/revenue/mrr", "/v1/revenue/mrr", 200, id="recurring revenue"),
    pytest.param("GET", "/v1/revenue/deferred?from=soon", "/v1/revenue/deferred", 400, id="revenue since when"),
    pytest.param("GET", "/v1/accounts/acme/banners", "/v1/accounts/{account}/banners", 200, id="banners"),
    pytest.param("GET", "/v1/accounts/acme/entitlements", "/v1/accounts/{account}/entitlements", 200, id="access"),
    pytest.param("POST", "/v1/access/check", "/v1/access/check", 400, id="check of something else"),
    pytest.param("GET", "/v1/accounts/acme/overrides", "/v1/accounts/{account}/overrides", 200, id="overrides"),
    pytest.param(
        "DELETE",
        "/v1/accounts/acme/overrides/pos?by=ann&reason=why",
        "/v1/accounts/{account}/overrides/{feature}",
        200,
        id="take back",
    ),
    pytest.param("POST", "/v1/accounts/acme/contracts", "/v1/accounts/{account}/contracts", 400, id="a contract"),
    pytest.param("POST", "/v1/access/holds/hold_1/release", "/v1/access/holds/{hold}/release", 404, id="no hold"),
    pytest.param("POST", "/v1/events", "/v1/events", 207, id="events"),
    pytest.param("POST", "/v1/events?verify=1", "/v1/events", 207, id="verified events"),
]


@pytest.mark.parametrize(("method", "target", "path", "status"), ANSWERS)
async def test_the_document_describes_what_the_gateway_answers(
    gateway: Gateway, method: str, target: str, path: str, status: int
) -> None:
    """A client that is generated from the document must be able to read every answer."""
    document = (await gateway.get("/openapi.json", key="")).json()
    await gateway.post([event("1"), event("b", subject="b"), event("old", time="2026-11-02T00:00:00Z")])
    await relay(gateway)
    body = [event("1"), event("2"), event("bad", time="no"), event("unmetered", type="nothing")]
    answer = await gateway.client.request(
        method, target, json=body if method == "POST" else None, headers=gateway.bearer("admin")
    )

    operation = document["paths"][path][method.lower()]
    schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]

    assert answer.status_code == status
    assert schema_problems(answer.json(), schema, document) == []


async def test_every_path_under_v1_has_an_example_that_works(gateway: Gateway) -> None:
    """A reader copies it."""
    await gateway.post(event())
    await relay(gateway)
    document = (await gateway.get("/openapi.json", key="")).json()
    page = (await gateway.get("/docs", key="")).text
    paths = {path: methods for path, methods in document["paths"].items() if path.startswith("/v1")}
    del paths[WEBHOOK_PATH]

    assert len(paths) >= 8
    operations = [(path, method, each) for path, methods in paths.items() for method, each in methods.items()]
    for path, method, operation in operations:
        (sample,) = operation["x-codeSamples"]
        words = shlex.split(sample["source"])
        content = words[words.index("-d") + 1] if "-d" in words else None
        words = words[:1] + words[3:] if words[1] == "-X" else words
        headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
        assert headers.pop("Authorization") == "Bearer $TIDEMARK_API_KEY"
        (target,) = [word.removeprefix("$GATEWAY") for word in words if word.startswith("$GATEWAY")]
        answer = await gateway.client.request(
            method.upper(), target, content=content, headers=headers | gateway.bearer("admin")
        )
        expected = 501 if path in OF_STRIPE else 202 if path in TAKEN else 200
        assert answer.status_code == expected, (path, answer.text)
        assert escape(sample["source"]) in page


async def test_the_page_has_no_words_of_the_library(gateway: Gateway) -> None:
    """They say nothing. No query can send null."""
    page = (await gateway.get("/docs", key="")).text
    operations = page.partition("<h2>Objects</h2>")[0]

    assert "Successful Response" not in page
    assert "null" not in operations
    assert "binary mode" in operations.partition("<h3>Body</h3>")[2]


async def test_every_path_under_v1_documents_its_key_and_its_refusals(gateway: Gateway) -> None:
    """A generated client sends the key, and knows the form of every error."""
    document = (await gateway.get("/openapi.json", key="")).json()
    operations = {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }

    assert {"type": "http", "scheme": "bearer"}.items() <= document["components"]["securitySchemes"]["ApiKey"].items()
    for name, operation in operations.items():
        assert ("security" in operation) == (" /v1/" in name and WEBHOOK_PATH not in name), name
        # The library's own 422 is none of ours; only a correction has one.
        assert ("422" in operation["responses"]) == (name == "post /v1/corrections"), name
        refusal = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert refusal == {"$ref": "#/components/schemas/ErrorAnswer"}, name


async def test_the_models_of_answers_refuse_what_they_do_not_describe() -> None:
    """`extra=forbid` makes the document say that there are no other fields."""
    answers = [model for model in vars(models).values() if isinstance(model, type) and issubclass(model, BaseModel)]

    assert [model for model in answers if model is not BaseModel and model.model_config.get("extra") != "forbid"] == []


class _References(HTMLParser):
    """What a page loads or links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "link", "img", "iframe") or "src" in attributes:
            self.loaded.append(tag)
        if tag == "a":
            self.links.append(attributes.get("href") or "")
        if "id" in attributes:
            self.anchors.add(attributes["id"] or "")


async def test_the_documentation_page_needs_no_network(gateway: Gateway) -> None:
    """A page that loads its parts from elsewhere is blank on a machine without a network."""
    document = (await gateway.get("/openapi.json", key="")).json()

    page = await gateway.get("/docs", key="")

    references = _References()
    references.feed(page.text)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert references.loaded == []
    assert [link for link in references.links if not link.startswith(("#", "/"))] == []
    assert [link for link in references.links if link.startswith("#") and link[1:] not in references.anchors] == []
    assert [path for path in document["paths"] if path not in page.text] == []
    assert [name for name in document["components"]["schemas"] if name not in references.anchors] == []


class _Down:
    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        if name in ("bounds", "partition_count"):
            raise OSError("the log is down")
        return getattr(self._log, name)


async def test_the_first_page_tells_a_person_what_this_is_and_whether_it_is_well(gateway: Gateway) -> None:
    """A browser gets HTML, a program JSON."""
    browser = await gateway.client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    program = await gateway.client.get("/", headers={"accept": "application/json"})
    curl = await gateway.client.get("/", headers={"accept": "*/*"})

    references = _References()
    references.feed(browser.text)
    assert browser.headers["content-type"] == "text/html; charset=utf-8"
    assert "All is well" in browser.text
    assert {"/docs", "/openapi.json", "/readyz", "/metrics"} == set(references.links)
    assert references.loaded == []
    assert program.json() == curl.json()
    assert program.json()["status"] == "ready"
    for link in program.json()["links"].values():
        assert (await gateway.client.get(link)).status_code == 200


async def test_the_first_page_says_that_the_log_is_down(tmp_path: Path) -> None:
    """The page answers also then."""
    async with running(tmp_path) as well, running(tmp_path / "down", log=_Down(well.world.log)) as gateway:
        browser = await gateway.client.get("/", headers={"accept": "text/html"})
        program = await gateway.client.get("/")

    assert (browser.status_code, program.status_code) == (200, 200)
    assert "does not take events" in browser.text
    assert program.json()["status"] == "not_ready"


@pytest.mark.parametrize(
    "path", ["/v1/usage/", "/v1/events/", "/v1/meters/", "/healthz/", "/docs/", "/v1/accounts/acme/usage/", "/v1"]
)
async def test_a_slash_too_many_is_no_redirect(gateway: Gateway, path: str) -> None:
    """Behind a TLS proxy a redirect would go to http://, and the client would send its key in the clear."""
    answer = await gateway.get(path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert "location" not in answer.headers


async def test_the_operators_app_of_a_role_redirects_nowhere() -> None:
    """The worker's and the sink's paths stand behind the same proxies."""

    async def readiness() -> Readiness:
        return Readiness(True, {})

    app = ops_app(Metrics(), readiness, lambda: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        answer = await client.get("/healthz/")

    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/", "/docs", "/v1/meters"])
async def test_head_is_answered_as_get(gateway: Gateway, path: str) -> None:
    """Load balancers check with HEAD."""
    answer = await gateway.client.head(path, headers=gateway.bearer("read"))

    assert answer.status_code == 200
