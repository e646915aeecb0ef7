"""The pages for people: `/` and `/docs`. They load nothing from elsewhere, so they work without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pipeline.http import models
from pipeline.http.errors import json_answer
from pipeline.http.health import Health

_SECURITY: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
code, pre {{ font: .875em/1.4 ui-monospace, monospace; background: #8882; overflow-wrap: anywhere; }}
code {{ padding: 0 .2em; }} pre {{ padding: .6em .8em; overflow-x: auto; }} a {{ overflow-wrap: anywhere; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem; font-size: 1.4rem; }} h3 {{ font-size: 1rem; }}
h2 code {{ font-size: inherit; background: none; padding: 0; }}
td {{ text-align: left; padding: .2em 1em .2em 0; vertical-align: top; }}
@media (max-width: 40rem) {{
tr {{ display: block; padding: .4em 0; }} td {{ display: inline; padding-right: .5em; }}
td:last-child {{ display: block; padding: 0; }} pre {{ white-space: pre-wrap; }}
}}
:root {{ color-scheme: light dark; }}
</style></head><body>
{body}
</body></html>
"""
_STATUS: Final = {
    "ready": "All is well: the gateway takes events and answers questions.",
    "degraded": "The gateway takes events. Some questions have no answer at the moment.",
    "not_ready": "The gateway does not take events at the moment: the log does not answer.",
}


class Pages:
    """The handlers of `/`, `/docs` and `/openapi.json`."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def front(self, request: Request) -> Response:
        """What answers here, where to go on, and whether it is well. HTML for browsers, JSON for others."""
        readiness = msgspec.json.decode((await self._health.ready(request)).body)
        status = readiness["status"]
        failing = [f"`{name}`" for name, check in readiness["checks"].items() if not check["ok"]]
        problem = f" Failing: {', '.join(failing)}; `/readyz` says why." if failing else ""
        app = request.app
        links = models.Links(docs="/docs", openapi="/openapi.json", readiness="/readyz", metrics="/metrics")
        if "text/html" not in request.headers.get("accept", ""):
            return json_answer(
                models.Front(
                    name=app.title, description=app.description, version=app.version, status=status, links=links
                )
            )
        items = "".join(
            f'<li><a href="{path}">{path}</a>: {meaning}</li>'
            for path, meaning in (
                (links.docs, "the paths of this API, with their parameters and answers"),
                (links.openapi, "the same for programs, as an OpenAPI document"),
                (links.readiness, "how far the stores have come"),
                (links.metrics, "metrics in the format of Prometheus"),
            )
        )
        body = f"<h1>{app.title} {escape(app.version)}</h1><p>{_text(app.description)}</p>"
        body += f"<p><strong>{_text(_STATUS[status] + problem)}</strong></p><ul>{items}</ul>"
        return HTMLResponse(_PAGE.format(title=app.title, body=body), headers=_SECURITY)

    async def docs(self, request: Request) -> Response:
        """The OpenAPI document as a page."""
        return HTMLResponse(docs_page(await asyncio.to_thread(request.app.state.openapi)), headers=_SECURITY)

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return json_answer(await asyncio.to_thread(request.app.state.openapi))


def docs_page(openapi: Mapping[str, Any]) -> str:
    """An OpenAPI document as one HTML page without scripts."""
    operations = [
        (path, method, operation) for path, methods in openapi["paths"].items() for method, operation in methods.items()
    ]
    schemas = openapi["components"]["schemas"]
    info = openapi["info"]
    body = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_text(info['description'])}</p>"]
    body += ["<p>Every path under <code>/v1</code> needs the header <code>Authorization: Bearer tm_…</code>. "]
    body += ["The examples need two variables:</p><pre>export GATEWAY=http://127.0.0.1:8080"]
    body += ["export TIDEMARK_API_KEY=tm_…</pre><p>"]
    body += ['The same as an OpenAPI document: <a href="/openapi.json">/openapi.json</a>.</p><ul>']
    body += [
        f'<li><a href="#{_anchor(method, path)}">{method.upper()} {path}</a></li>' for path, method, _ in operations
    ]
    body += ["</ul>", *(_operation(path, method, operation) for path, method, operation in operations)]
    body += ["<h2>Objects</h2>", *(_schema(name, schema) for name, schema in sorted(schemas.items()))]
    return _PAGE.format(title=f"{info['title']}: HTTP API", body="\n".join(body))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{_anchor(method, path)}"><code>{method.upper()} {path}</code></h2>']
    parts += [f"<p><strong>{_text(operation['summary'])}</strong>. {_text(operation.get('description', ''))}</p>"]
    for sample in operation.get("x-codeSamples", ()):
        parts += [f"<h3>Example</h3><pre>{escape(sample['source'])}</pre>"]
    if parameters := operation.get("parameters"):
        rows = (
            (
                f"<code>{escape(parameter['name'])}</code>",
                "required" if parameter["required"] else "",
                _type(_without_null(parameter["schema"])),
                _text(parameter.get("description", "")),
            )
            for parameter in parameters
        )
        parts += ["<h3>Parameters</h3>", _table(rows)]
    if body := operation.get("requestBody"):
        forms = body["content"].items()
        parts += [f"<h3>Body</h3><p>{_text(body.get('description', ''))}</p>"]
        rows_of_forms = (
            (f"<code>{escape(media)}</code>", _type(form["schema"]), _text(form["schema"].get("description", "")))
            for media, form in forms
        )
        parts += [_table(rows_of_forms)]
    answers = (
        (
            escape(status),
            _text(response["description"]),
            ", ".join(_type(content.get("schema", {})) for content in response.get("content", {}).values()),
        )
        for status, response in operation["responses"].items()
    )
    parts += ["<h3>Answers</h3>", _table(answers)]
    return "\n".join(parts)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = (
        (
            f"<code>{escape(field)}</code>",
            "always" if field in required else "optional",
            _type(described),
            _text(described.get("description", "")),
        )
        for field, described in schema.get("properties", {}).items()
    )
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{_text(schema.get("description", ""))}</p>{_table(rows)}'


def _without_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a parameter without null, which no query can send."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    return {**schema, "anyOf": choices} if choices else schema


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words, with links to the objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(choice) for choice in schema[key])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    limits = ((schema.get("minimum"), "from"), (schema.get("maximum"), "to"), (schema.get("maxLength"), "up to"))
    words = [str(schema.get("type", "anything")), schema.get("format", "")]
    words += [f"{word} {limit}" for limit, word in limits if limit is not None]
    words += ["characters"] if "maxLength" in schema else []
    return escape(" ".join(word for word in words if word))


def _table(rows: Iterable[Iterable[str]]) -> str:
    return "<table>" + "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows) + "</table>"


def _text(text: str) -> str:
    """Plain text with `code` in backticks as HTML."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}")
