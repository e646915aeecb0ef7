"""The OpenAPI document. FastAPI describes the routes; `POST /v1/events` reads its own body and is described here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.routing import BaseRoute

from pipeline.access.holds import KEY_CHARACTERS_MAX
from pipeline.http.access import CHECKS_MAX
from pipeline.http.body import BATCH, LINES, PLAIN, SINGLE
from pipeline.http.change_models import AcceptWish, CheckoutWish, PortalWish, QuoteWish
from pipeline.http.changes import KEY_CHARACTERS_MAX as REQUEST_NAME_CHARACTERS_MAX
from pipeline.http.corrections import CorrectionWish
from pipeline.http.credit_models import GrantWish, TopUpWish, VoidWish
from pipeline.http.models import (
    AccessAnswer,
    AccessAnswers,
    AccessCheck,
    AccountWish,
    ErrorAnswer,
    EventsAnswer,
    HoldUse,
    Readiness,
)
from pipeline.http.override_models import ContractWish, OverrideWish
from pipeline.http.page_links import PageWish
from pipeline.http.redrives import RedriveWish
from pipeline.http.seat_models import SeatBodyWish, SeatMoveWish
from schemas.events import UsageEvent

DESCRIPTION: Final = (
    "Tidemark counts usage events exactly, answers questions about usage, and bills it. Send CloudEvents to "
    "`POST /v1/events`, and ask for totals under `/v1/usage`. Times are RFC 3339, and quantities are decimal text."
)

_MEANINGS: Final[dict[int | str, str]] = {
    400: "A parameter, the path or the body is wrong: correct the request.",
    401: "The request has no valid key.",
    403: "The key may not do this.",
    404: "There is no such meter, account, hold, seat, invoice, line or archived event.",
    408: "The body took too long.",
    409: "The hold or the seat ended before, the change is refused, or the correction's name is used.",
    422: "The event cannot be corrected so.",
    413: "The body is too large, or has too many events.",
    415: "Another content type, charset or encoding is needed.",
    429: "The key sends more events than it may: send the request again after `Retry-After`.",
    501: "This gateway was started without the store that answers.",
    503: "A store does not answer at the moment: send the request again after `Retry-After`.",
    "default": "Every other refusal.",
}
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": meaning, "model": ErrorAnswer} for status, meaning in _MEANINGS.items()
}
NO_TOP: Final[dict[int | str, dict[str, Any]]] = {
    404: REFUSALS[404]
    | {"description": "There is no such meter, or no account has usage in a period that starts at `period`."}
}
NOT_READY: Final[dict[int | str, dict[str, Any]]] = {
    503: {"description": "The log takes no events.", "model": Readiness}
}
_KEY: Final = '-H "Authorization: Bearer $TIDEMARK_API_KEY"'
_MONTH: Final = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z"
ACCOUNT: Final = "/v1/accounts/{account}"
OVERRIDE: Final = f"{ACCOUNT}/overrides/{{feature}}"
ACCEPT: Final = f"{ACCOUNT}/quotes/{{quote}}/accept"
SEATS: Final = f"{ACCOUNT}/seats"
SEAT: Final = f"{SEATS}/{{seat}}"
CREDITS: Final = f"{ACCOUNT}/credits"
HOLD_PATH: Final = "/v1/access/holds/{hold}"
# The bodies that handlers read themselves.
_BODIES: Final[Mapping[tuple[str, str], type[BaseModel]]] = {
    (ACCOUNT, "put"): AccountWish,
    (OVERRIDE, "put"): OverrideWish,
    (f"{ACCOUNT}/contracts", "post"): ContractWish,
    (f"{HOLD_PATH}/use", "post"): HoldUse,
    (f"{ACCOUNT}/quotes", "post"): QuoteWish,
    (ACCEPT, "post"): AcceptWish,
    (f"{ACCOUNT}/checkout", "post"): CheckoutWish,
    (f"{ACCOUNT}/portal", "post"): PortalWish,
    (f"{ACCOUNT}/page", "post"): PageWish,
    ("/v1/revenue/page", "post"): PageWish,
    ("/v1/operator/page", "post"): PageWish,
    ("/v1/quarantine/redrives", "post"): RedriveWish,
    ("/v1/corrections", "post"): CorrectionWish,
    (SEATS, "post"): SeatBodyWish,
    (f"{SEAT}/activate", "post"): SeatMoveWish,
    (f"{SEAT}/release", "post"): SeatMoveWish,
    (f"{CREDITS}/top-ups", "post"): TopUpWish,
    (f"{CREDITS}/grants", "post"): GrantWish,
    (f"{CREDITS}/grants/{{grant}}/void", "post"): VoidWish,
}
_UNFINISHED: Final = "Stripe has not answered yet: send the same request again."
# Answers that have the form of the first one.
_MORE_ANSWERS: Final[Mapping[tuple[str, str], tuple[int, str]]] = {
    (ACCEPT, "post"): (202, _UNFINISHED),
    ("/v1/corrections", "post"): (200, "A dry run: nothing was written."),
    (f"{ACCOUNT}/changes/pending", "delete"): (202, _UNFINISHED),
    (f"{ACCOUNT}/checkout", "post"): (202, _UNFINISHED),
    (f"{CREDITS}/top-ups", "post"): (202, _UNFINISHED),
    (f"{CREDITS}/grants", "post"): (200, "The grant was made before, under the same `Idempotency-Key`."),
    (SEATS, "post"): (200, "The holder has a seat, or the same `Idempotency-Key` made one."),
}
# The requests that the header `Idempotency-Key` names, and whether they need the header.
_NAMED: Final[Mapping[str, bool]] = {
    f"{ACCOUNT}/quotes": False,
    f"{ACCOUNT}/checkout": False,
    SEATS: False,
    f"{CREDITS}/top-ups": True,
    f"{CREDITS}/grants": True,
    f"{CREDITS}/grants/{{grant}}/void": True,
}
_TARGETS: Final = {
    "/v1/usage": f"/v1/usage?meter=tokens&account=acme&window=day&group_by=model&{_MONTH}",
    "/v1/usage/current": "/v1/usage/current?account=acme",
    "/v1/usage/periods": f"/v1/usage/periods?meter=tokens&account=acme&{_MONTH}",
    "/v1/usage/top": "/v1/usage/top?meter=tokens&limit=10",
    "/v1/billing/intents": "/v1/billing/intents?state=dead&account=acme",
    "/v1/notices": "/v1/notices?state=dead",
    "/v1/dunning/cases": "/v1/dunning/cases?state=open",
    **{
        f"/v1/revenue/{name}": f"/v1/revenue/{name}?from=2026-07&to=2027-01"
        for name in ("mrr", "movements", "retention", "cohorts", "recognized", "deferred")
    },
    "/v1/accounts/{account}/banners": "/v1/accounts/acme/banners",
    f"{ACCOUNT}/timeline": "/v1/accounts/acme/timeline?limit=20",
    f"{ACCOUNT}/invoices/{{invoice}}/explain": "/v1/accounts/acme/invoices/in_1/explain",
    f"{ACCOUNT}/invoices/{{invoice}}/lines/{{line}}/explain": "/v1/accounts/acme/invoices/in_1/lines/il_1/explain",
    f"{ACCOUNT}/events/{{event}}/explain": "/v1/accounts/acme/events/job-4711/explain",
    "/v1/revenue/journal": "/v1/revenue/journal?after=4711",
    "/v1/meters": "/v1/meters",
    "/v1/plans": "/v1/plans",
    "/v1/meters/{meter}/top": "/v1/meters/tokens/top",
    ACCOUNT: "/v1/accounts/acme",
    "/v1/accounts/{account}/usage": "/v1/accounts/acme/usage",
    "/v1/accounts/{account}/entitlements": "/v1/accounts/acme/entitlements",
    "/v1/accounts/{account}/overrides": "/v1/accounts/acme/overrides",
    f"{ACCOUNT}/corrections": "/v1/accounts/acme/corrections?limit=10",
    CREDITS: "/v1/accounts/acme/credits",
}
# A command for each path that needs a key.
EXAMPLES: Final[Mapping[str, str]] = {
    "/v1/events": f"""curl "$GATEWAY/v1/events" \\
  {_KEY} \\
  -H "Content-Type: application/cloudevents+json" \\
  -d '{{"specversion":"1.0","id":"job-4711","source":"docs","type":"llm.completion","subject":"acme",
       "data":{{"tokens":120,"model":"small"}}}}'""",
    "/v1/access/check": f"""curl "$GATEWAY/v1/access/check" \\
  {_KEY} \\
  -d '{{"account": "acme", "feature": "api_calls", "quantity": "1"}}'""",
    OVERRIDE: f"""curl -X PUT "$GATEWAY/v1/accounts/acme/overrides/api_calls" \\
  {_KEY} \\
  -d '{{"does": "add", "value": "5000", "until": "2027-01-01T00:00:00Z", "by": "ann", "reason": "ticket 4711"}}'""",
    f"{ACCOUNT}/contracts": f"""curl "$GATEWAY/v1/accounts/acme/contracts" \\
  {_KEY} \\
  -d '{{"terms": [{{"feature": "api_calls", "does": "set", "value": "500000"}}], "by": "ann", "reason": "signed"}}'""",
    f"{ACCOUNT}/quotes": f"""curl "$GATEWAY/v1/accounts/acme/quotes" \\
  {_KEY} \\
  -d '{{"plan": "professional", "used": {{"locations": "1"}}}}'""",
    ACCEPT: f"""curl -X POST "$GATEWAY/v1/accounts/acme/quotes/qt_5d41402abc4b2a76b9719d91/accept" \\
  {_KEY}""",
    f"{ACCOUNT}/checkout": f"""curl "$GATEWAY/v1/accounts/acme/checkout" \\
  {_KEY} \\
  -d '{{"plan": "professional", "return_url": "https://app.example/billing"}}'""",
    f"{ACCOUNT}/portal": f"""curl "$GATEWAY/v1/accounts/acme/portal" \\
  {_KEY} \\
  -d '{{"return_url": "https://app.example/billing", "only_card": true}}'""",
    f"{ACCOUNT}/page": f'curl "$GATEWAY/v1/accounts/acme/page" \\\n  {_KEY} \\\n  -d \'{{"expires_in_s": 3600}}\'',
    "/v1/operator/page": f'curl "$GATEWAY/v1/operator/page" \\\n  {_KEY} \\\n  -d \'{{"expires_in_s": 3600}}\'',
    "/v1/corrections": f"""curl "$GATEWAY/v1/corrections" \\
  {_KEY} \\
  -d '{{"correction": "ticket-7", "account": "acme", "void": "op-1", "by": "ann", "reason": "a test run"}}'""",
    "/v1/quarantine/redrives": f"""curl "$GATEWAY/v1/quarantine/redrives" \\
  {_KEY} \\
  -d '{{"cause": "negative_quantity", "meter": "tokens", "dry_run": true}}'""",
    "/v1/revenue/page": f'curl "$GATEWAY/v1/revenue/page" \\\n  {_KEY} \\\n  -d \'{{"expires_in_s": 3600}}\'',
    f"{ACCOUNT}/changes/pending": f"""curl -X DELETE "$GATEWAY/v1/accounts/acme/changes/pending" \\
  {_KEY}""",
    SEATS: f"""curl "$GATEWAY/v1/accounts/acme/seats" \\
  {_KEY} \\
  -d '{{"feature": "members", "holder": "user_17", "reserve": true}}'""",
    **{
        f"{SEAT}/{verb}": f'curl -X POST "$GATEWAY/v1/accounts/acme/seats/{seat}/{verb}" \\\n  {_KEY}'
        for verb, seat in (
            ("activate", "seat_01a1fb6d7c405d41402abc4b2a76"),
            ("release", "seat_01a1fb6d7c407d793037a0760186"),
        )
    },
    f"{CREDITS}/top-ups": f"""curl "$GATEWAY/v1/accounts/acme/credits/top-ups" \\
  {_KEY} \\
  -H "Idempotency-Key: order-17" \\
  -d '{{"pool": "prepaid", "return_url": "https://app.example/billing"}}'""",
    f"{CREDITS}/grants": f"""curl "$GATEWAY/v1/accounts/acme/credits/grants" \\
  {_KEY} \\
  -H "Idempotency-Key: ticket-4711" \\
  -d '{{"pool": "prepaid", "credits": 100, "by": "ann", "reason": "ticket 4711"}}'""",
    f"{CREDITS}/grants/{{grant}}/void": f"""curl "$GATEWAY/v1/accounts/acme/credits/grants/cg_5d41402abc4b2a76/void" \\
  {_KEY} \\
  -H "Idempotency-Key: ticket-4712" \\
  -d '{{"by": "ann", "reason": "given by mistake"}}'""",
    f"{HOLD_PATH}/use": f"""curl "$GATEWAY/v1/access/holds/hold_5d41402abc4b2a76b9719d911017c592/use" \\
  {_KEY} \\
  -d '{{"quantity": "40"}}'""",
    f"{HOLD_PATH}/release": 'curl -X POST "$GATEWAY/v1/access/holds/hold_7d793037a0760186574b0282f2f435e7/release" \\\n'
    f"  {_KEY}",
    **{path: f'curl "$GATEWAY{target}" \\\n  {_KEY}' for path, target in _TARGETS.items()},
    "/v1/accounts/{account}/flush": f'curl -X POST "$GATEWAY/v1/accounts/acme/flush" \\\n  {_KEY}',
}
REVOKE_EXAMPLE: Final = (
    f'curl -X DELETE "$GATEWAY/v1/accounts/acme/overrides/api_calls?by=ann&reason=mistake" \\\n  {_KEY}'
)
SEATS_EXAMPLE: Final = f'curl "$GATEWAY/v1/accounts/acme/seats?feature=members" \\\n  {_KEY}'
LINK_EXAMPLE: Final = f"""curl -X PUT "$GATEWAY/v1/accounts/acme" \\
  {_KEY} \\
  -H "Content-Type: application/json" \\
  -d '{{"stripe_customer":"cus_NffrFeUfNV2Hib"}}'"""


def document(app: FastAPI, routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of an app with these routes and with `POST /v1/events`. Takes a few tenths of a second."""
    openapi = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
    schemas: dict[str, Any] = openapi["components"]["schemas"]
    event, answer = _schema(UsageEvent, schemas), _schema(EventsAnswer, schemas)
    batch = {"type": "array", "items": event}
    content: dict[str, Any] = {
        SINGLE: {"schema": event},
        BATCH: {"schema": batch},
        PLAIN: {"schema": {"oneOf": [event, batch]}},
        LINES[0]: {"schema": {"type": "string", "description": "One event per line."}},
    }
    results = {
        202: "All events are accepted.",
        207: "Some events are accepted, some rejected: look at `events`.",
        400: "No event is accepted, or the body cannot be read.",
        403: "The key may not send events, or none of these events.",
        503: "Some events are `unknown`, or the gateway is full: send the same events again under the same ids.",
    }
    either = {"anyOf": [answer, _REFUSAL]}
    responses = {
        str(status): _response(meaning, answer if status < 300 else either) for status, meaning in results.items()
    }
    responses |= {
        str(status): _response(_MEANINGS[status], _REFUSAL) for status in (401, 408, 413, 415, 429, "default")
    }
    openapi["paths"]["/v1/events"] = {
        "post": {
            "summary": "Send events",
            "description": "Takes CloudEvents 1.0, one or many, also in binary mode (`ce-` headers, and the body is "
            "the event's `data`) and with `Content-Encoding: gzip` or `zstd`. The answer comes after the log has the "
            "events.",
            "operationId": "send_events",
            "parameters": [_VERIFY, _DRY_RUN],
            "requestBody": {"required": True, "description": _BINARY_MODE, "content": content},
            "responses": dict(sorted(responses.items())),
            "security": [{"ApiKey": []}],
        }
    }
    received = {
        "200": {"description": "The log or the quarantine has the delivery."},
        **{str(status): _response(_MEANINGS[status], _REFUSAL) for status in (413, 501, 503, "default")},
        "400": _response("None of the deployment's secrets signed the body.", _REFUSAL),
    }
    openapi["paths"]["/v1/stripe/webhook"] = {
        "post": {
            "summary": "Take a webhook of Stripe",
            "description": "Only Stripe can call this: a signing secret of the deployment must have signed the body.",
            "operationId": "take_webhook",
            "parameters": [_STRIPE_SIGNATURE],
            "requestBody": {"required": True, "content": {PLAIN: {"schema": {"type": "object"}}}},
            "responses": dict(sorted(received.items())),
        }
    }
    openapi["paths"]["/v1/access/check"] = {"post": _check(schemas)}
    for path, media_type in _TEXTS.items():
        openapi["paths"][path]["get"]["responses"]["200"]["content"] = {media_type: {"schema": {"type": "string"}}}
    # The handler reads the body itself, because FastAPI would read one of any size.
    for (path, method), model in _BODIES.items():
        openapi["paths"][path][method]["requestBody"] = {
            "required": model not in (HoldUse, AcceptWish, SeatMoveWish, PageWish),
            "content": {PLAIN: {"schema": _schema(model, schemas)}},
        }
    _describe_repetitions(openapi["paths"])
    _show_examples(openapi["paths"])
    openapi["paths"] = {path: openapi["paths"][path] for path in sorted(openapi["paths"], key=_reading_order)}
    return openapi


def _show_examples(paths: dict[str, Any]) -> None:
    """Add the commands, and their values as the examples of parameters and bodies."""
    for path, command in EXAMPLES.items():
        for operation in paths[path].values():
            operation["x-codeSamples"] = [{"lang": "Shell", "source": command}]
    paths[OVERRIDE]["delete"]["x-codeSamples"] = [{"lang": "Shell", "source": REVOKE_EXAMPLE}]
    paths[SEATS]["get"]["x-codeSamples"] = [{"lang": "Shell", "source": SEATS_EXAMPLE}]
    paths[ACCOUNT]["put"]["x-codeSamples"] = [{"lang": "Shell", "source": LINK_EXAMPLE}]
    for path, operations in paths.items():
        for operation in operations.values():
            _add_examples(path, operation)


def _describe_repetitions(paths: dict[str, Any]) -> None:
    """Add what names a request, and the answers to a repeated request and to one that Stripe has not finished."""
    for (path, method), (status, meaning) in _MORE_ANSWERS.items():
        responses = paths[path][method]["responses"]
        first = next(responses[each] for each in ("200", "201", "202") if each in responses)
        responses[str(status)] = {**first, "description": meaning}
        paths[path][method]["responses"] = dict(sorted(responses.items()))
    for path, is_required in _NAMED.items():
        schema = {"type": "string", "minLength": int(is_required), "maxLength": REQUEST_NAME_CHARACTERS_MAX}
        meaning = "Names the request: a repetition under the same name gets the same answer and does nothing more."
        header = {"name": "Idempotency-Key", "in": "header", "required": is_required, "schema": schema}
        paths[path]["post"]["parameters"].append({**header, "description": meaning})


def _add_examples(path: str, operation: dict[str, Any]) -> None:
    """Take the values of the parameters and the body from the command that is the operation's example."""
    for sample in operation.get("x-codeSamples", ()):
        words = shlex.split(sample["source"])
        target = urlsplit(next(word for word in words if word.startswith("$GATEWAY")).removeprefix("$GATEWAY"))
        named = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path), target.path)
        values = {name: unquote(text) for name, text in (named.groupdict() if named else {}).items()}
        values |= dict(parse_qsl(target.query))
        values |= dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in values:
                parameter["example"] = values[parameter["name"]]
        if "-d" in words:
            content = operation["requestBody"]["content"]
            media_type = content.get(values.get("Content-Type", PLAIN), content[PLAIN])
            media_type["example"] = json.loads(words[words.index("-d") + 1])


def _check(schemas: dict[str, Any]) -> dict[str, Any]:
    """`POST /v1/access/check`, whose handler reads the body itself too."""
    refused = (400, 401, 403, 408, 413, 501, 503)
    check, answer = _schema(AccessCheck, schemas), _schema(AccessAnswer, schemas)
    checks = {"type": "array", "items": check, "minItems": 1, "maxItems": CHECKS_MAX}
    asked, answered = {"oneOf": [check, checks]}, {"oneOf": [answer, _schema(AccessAnswers, schemas)]}
    return {
        "summary": "Ask whether an account may do something",
        "description": "Answered from memory, with the reason, and with the plan that would allow it. A list of up "
        "to 100 checks gets a list of answers.",
        "operationId": "check_access",
        "parameters": [_IDEMPOTENCY_KEY],
        "requestBody": {"required": True, "content": {PLAIN: {"schema": asked}}},
        "responses": {
            "200": _response("The answer, or the answers to a list.", answered),
            **{str(status): _response(_MEANINGS[status], _REFUSAL) for status in refused},
            "default": _response(_MEANINGS["default"], _REFUSAL),
        },
        "security": [{"ApiKey": []}],
    }


_BINARY_MODE: Final = (
    "In binary mode the request has the header `ce-specversion`, a JSON content type or none, the event's other "
    "attributes in `ce-` headers as percent-encoded UTF-8, and the event's `data` as the body."
)
_VERIFY: Final = {
    "name": "verify",
    "in": "query",
    "required": False,
    "description": "1: the status of an event that arrived before is `duplicate`, as far as the worker has counted.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}
_DRY_RUN: Final = {
    "name": "dry_run",
    "in": "query",
    "required": False,
    "description": "1: nothing is written; the answer says what would become of each event.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}
_STRIPE_SIGNATURE: Final = {
    "name": "Stripe-Signature",
    "in": "header",
    "required": True,
    "description": "Stripe's signature of the body.",
    "schema": {"type": "string"},
}
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "With `hold_s`: names the request, so that a repeated request gets the same hold.",
    "schema": {"type": "string", "maxLength": KEY_CHARACTERS_MAX},
}
# The answers that are not JSON. A browser gets the page `/` as HTML too.
_TEXTS: Final = {"/docs": "text/html", "/metrics": "text/plain"}
_REFUSAL: Final = {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}


def _reading_order(path: str) -> tuple[bool, bool, str]:
    return not path.startswith("/v1"), path != "/v1/events", path


def _response(meaning: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the model's schema, which is added to `schemas` with all that it refers to."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}
