"""`POST /v1/accounts/{account}/flush`: the account's usage so far is reported to Stripe now."""

from __future__ import annotations

from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.http import models
from pipeline.http.dependencies import Admin, GatewayDependencies, Live
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.queries import AccountInPath
from pipeline.logs.bindings import AccountLog
from pipeline.logs.flushes import flush_account
from schemas.events import NAME_CHARACTERS_MAX


class FlushEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def flush(self, _key: Admin, live: Live, account: AccountInPath) -> Response:
        """Writes a flush to the log. The account's usage so far is reported with timestamps before `instant`, later
        usage with later ones. The answer does not wait for the reports: `tidemark account flush` does."""
        if not 0 < len(account) <= NAME_CHARACTERS_MAX:
            raise ApiError(400, "bad_parameter", f"must have 1 to {NAME_CHARACTERS_MAX} characters", "account")
        known = self._dependencies
        log = AccountLog(known.log, known.genesis.partitions, known.settings.secret_bytes(), known.clock)
        flushed = await flush_account(log, live, account)
        answer = models.Flushed(
            account=account,
            instant=format_instant_ms(flushed.instant_ms),
            partition=flushed.partition,
            offset=flushed.offset,
        )
        return json_answer(answer, 202)
