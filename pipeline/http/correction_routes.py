"""The paths of corrections in the app."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from pipeline.http.corrections import CORRECTIONS_PATH, CorrectionAnswer, CorrectionEndpoints, CorrectionsAnswer
from pipeline.http.dependencies import GatewayDependencies
from pipeline.http.openapi import REFUSALS


def add_corrections(app: FastAPI, dependencies: GatewayDependencies) -> None:
    """Add the paths that correct events and list corrections."""
    corrections = CorrectionEndpoints(dependencies)
    statuses = (400, 401, 403, 404, 408, 409, 413, 422, 501, 503)
    more: dict[str, Any] = {"response_model": CorrectionAnswer, "response_description": CorrectionAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (*statuses, "default")}}
    more |= {"methods": ["POST"], "status_code": 202, "summary": "Void or amend an event"}
    app.add_api_route(CORRECTIONS_PATH, corrections.post, **more)
    more = {"response_model": CorrectionsAnswer, "response_description": CorrectionsAnswer.__doc__}
    more |= {"responses": {status: REFUSALS[status] for status in (400, 401, 403, 501, 503, "default")}}
    path = "/v1/accounts/{account:name}/corrections"
    app.add_api_route(path, corrections.listed, summary="The corrections of an account", **more)
