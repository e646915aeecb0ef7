"""The class `Access`, with which applications ask whether an account may do something."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar
from urllib.parse import quote

from emitter.answers import error
from emitter.encoding import uuid7
from emitter.notices import Notices
from emitter.pool import Pool
from emitter.transport import Answer, exposes_key

CHECK_PATH: Final = "/v1/access/check"
HOLDS_PATH: Final = "/v1/access/holds/"
NOTHING_KNOWN: Final[Mapping[str, Any]] = {}
_log: Final = logging.getLogger("tidemark.emitter")

T = TypeVar("T")
Policy = Literal["allow", "deny"]
Quantity = int | float | Decimal | str
_Key = tuple[str, str, str, str | None]
# Posts a body to a path; raises `OSError` or `http.client.HTTPException` without an answer.
Post = Callable[[str, bytes, Mapping[str, str]], Answer]


class Allowed(NamedTuple):
    """The answer to a check. `if access.check(…):` asks `allowed`.

    `reason`: one of the closed list in docs/entitlements.md; `fallback_allow` or `fallback_deny` if the gateway did not
    answer. `answer`: the whole answer of the gateway, such as `remaining` and `upgrade`; empty without one. `age_s`:
    how old the answer is. `problem`: why the answer is not a fresh one of the gateway, or "".
    """

    allowed: bool
    reason: str
    answer: Mapping[str, Any]
    age_s: float = 0.0
    problem: str = ""

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def hold(self) -> str:
        """The id of the hold that was taken, or ""."""
        taken = self.answer.get("hold")
        return str(taken.get("id", "")) if isinstance(taken, dict) else ""


class _Cached(NamedTuple):
    asked_s: float
    allowed: Allowed


class Access:
    """Asks a gateway, and remembers the answers for a moment. Safe to use in any number of threads and after a fork.

    `check` and `check_async` never raise, whatever happens: without an answer of the gateway they give an older answer
    or the policy of the feature.
    """

    def __init__(
        self,
        gateway_url: str,
        api_key: str,
        *,
        on_error: Mapping[str, Policy] | None = None,
        on_error_default: Policy = "deny",
        answer_age_max_s: float = 1.0,
        stale_age_max_s: float = 60.0,
        answers_max: int = 10_000,
        connections_max: int = 16,
        request_timeout_s: float = 1.0,
        retry_interval_s: float = 1.0,
        post: Post | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_error`: by feature, what to answer if the gateway does not; `on_error_default` for other features.

        An answer is used again for `answer_age_max_s`, and for `stale_age_max_s` while the gateway does not answer.
        `answers_max` answers are remembered; the one that was asked for longest ago goes first. `connections_max`
        limits the idle connections, and the threads of `check_async`; more callers of `check_async` wait. After a
        failure only one caller in `retry_interval_s` asks the gateway, and waits up to `request_timeout_s` for each
        step of the connection; the others have their answers at once. `post` stands for the connections.
        Raises `ValueError` for invalid settings.
        """
        if min(answers_max, connections_max) < 1:
            raise ValueError("answers_max and connections_max must be 1 or more")
        policies = dict(on_error or {})
        for feature, policy in [*policies.items(), ("on_error_default", on_error_default)]:
            if policy not in ("allow", "deny"):
                raise ValueError(f"the policy of {feature} must be allow or deny, not {policy!r}")
        if post is None and exposes_key(gateway_url):
            _log.warning("%s is not encrypted: everybody on the way can read the API key", gateway_url)
        self._pool = Pool(gateway_url, request_timeout_s, connections_max)
        self._post = post or self._pool.post
        self._headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
        self._policies, self._default = policies, on_error_default
        self._answer_age_max_s, self._stale_age_max_s = answer_age_max_s, stale_age_max_s
        self._answers_max, self._connections_max = answers_max, connections_max
        self._retry_interval_s = retry_interval_s
        self._now_s = now_s
        self._notices = Notices(None, None)
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        """Set the empty state: in a new object, and in the child of a fork, whose parent keeps the connections."""
        self._pool.forget()
        self._lock = threading.Lock()
        self._answers: OrderedDict[_Key, _Cached] = OrderedDict()
        self._failed_s: float | None = None
        self._threads: ThreadPoolExecutor | None = None

    def check(
        self, account: str, feature: str, quantity: Quantity = 1, *, used: Quantity | None = None, hold_s: int = 0
    ) -> Allowed:
        """Whether the account may use `quantity` more of a feature; or as many seats more than `used`.

        With `hold_s`, the quantity is held for the caller for so many seconds if it is allowed, and `Allowed.hold`
        names the hold; without an answer of the gateway nothing is held. Blocks for a bounded time. Never raises: an
        invalid argument has the answer of the feature's policy, and `problem` says what is wrong.
        """
        try:
            key = _key(account, feature, quantity, used)
            return (None if hold_s else self._remembered(key)) or self._asked(key, hold_s)
        except Exception as failure:  # noqa: BLE001  # a check must never break the application
            return self._policy(feature, f"{type(failure).__name__}: {failure}")

    async def check_async(
        self, account: str, feature: str, quantity: Quantity = 1, *, used: Quantity | None = None, hold_s: int = 0
    ) -> Allowed:
        """The same for asyncio code: a remembered answer comes at once, another from a thread."""
        try:
            key = _key(account, feature, quantity, used)
            remembered = None if hold_s else self._remembered(key)
            if remembered is not None:
                return remembered
            closed = self._policy(feature, "the client was closed before the gateway was asked")
            ask = partial(self.check, account, feature, quantity, used=used, hold_s=hold_s)
            return await self._in_thread(ask, closed)
        except Exception as failure:  # noqa: BLE001  # a check must never break the application
            return self._policy(feature, f"{type(failure).__name__}: {failure}")

    def use(self, hold: str, quantity: Quantity | None = None) -> bool:
        """Say how much of a hold was used, after the events were sent and accepted; all of it without a quantity.

        Returns whether the gateway has it. Repeatable, and never raises. If it is never said, the hold ends by itself.
        """
        return self._end(hold, "use", {} if quantity is None else {"quantity": quantity})

    def release(self, hold: str) -> bool:
        """Give all of a hold back; otherwise as `use`."""
        return self._end(hold, "release", {})

    async def use_async(self, hold: str, quantity: Quantity | None = None) -> bool:
        """`use` for asyncio code."""
        return await self._in_thread(partial(self.use, hold, quantity), closed=False)

    async def release_async(self, hold: str) -> bool:
        """`release` for asyncio code."""
        return await self._in_thread(partial(self.release, hold), closed=False)

    def _end(self, hold: str, way: str, fields: Mapping[str, Quantity]) -> bool:
        try:
            body = json.dumps({name: _text(quantity) for name, quantity in fields.items()}).encode()
            answer = self._post(f"{HOLDS_PATH}{quote(hold, safe='')}/{way}", body, self._headers)
        except Exception as failure:  # noqa: BLE001  # the hold of an answer must never break the application
            self._notices.warn(f"a hold could not be ended: {type(failure).__name__}: {failure}")
            return False
        if answer.status != 200:
            stated = error(answer)
            self._notices.warn(f"a hold could not be ended: HTTP {answer.status}: {stated.reason}: {stated.detail}")
        return answer.status == 200

    async def _in_thread(self, call: Callable[[], T], closed: T) -> T:
        """What a call returns in a thread; `closed` if `close` came before its turn. Raises `CancelledError` only if
        the caller itself was cancelled."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            return await asyncio.wrap_future(self._executor().submit(call))
        except asyncio.CancelledError:
            if task and task.cancelling() > cancelled:
                raise
            return closed
        except RuntimeError:
            # `close` came between the two calls.
            return closed

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._connections_max, "tidemark-access")
            return self._threads

    def close(self) -> None:
        """Close the connections and end the threads. Who waits for a thread in `check_async` gets the policy of the
        feature, and in `use_async` and `release_async` False. Safe to call twice; a later check connects again."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _remembered(self, key: _Key) -> Allowed | None:
        with self._lock:
            return self._recent(key, self._answer_age_max_s)

    def _recent(self, key: _Key, age_max_s: float) -> Allowed | None:
        cached = self._answers.get(key)
        if cached is None or not 0 <= (age_s := self._now_s() - cached.asked_s) <= age_max_s:
            return None
        self._answers.move_to_end(key)
        return cached.allowed._replace(age_s=age_s)

    def _asked(self, key: _Key, hold_s: int) -> Allowed:
        if not self._may_ask():
            return self._without(key, hold_s, "the gateway did not answer a moment ago")
        asked_s = self._now_s()
        try:
            # A repeated request for a hold is told by this key, so that a second hold is never taken.
            headers = self._headers | ({"idempotency-key": uuid7(time.time_ns)} if hold_s else {})
            answer = self._post(CHECK_PATH, _body(key, hold_s), headers)
        except Exception as failure:  # noqa: BLE001  # a transport of the application may raise anything
            return self._failure(key, hold_s, f"no answer: {type(failure).__name__}: {failure}")
        document = _document(answer)
        if document is None:
            stated = error(answer)
            problem = f"HTTP {answer.status}: {stated.reason}: {stated.detail}"
            # A request that the gateway refuses says nothing of its health.
            return self._refused(key, problem) if 400 <= answer.status < 429 else self._failure(key, hold_s, problem)
        allowed = Allowed(document["allowed"], document["reason"], document)
        with self._lock:
            self._failed_s = None
            # The gateway does not know either: what it knew before is worth more, and it may know more in a moment.
            if not document.get("fallback") and not hold_s:
                self._answers[key] = _Cached(asked_s, allowed)
                self._answers.move_to_end(key)
                while len(self._answers) > self._answers_max:
                    self._answers.popitem(last=False)
        return allowed

    def _may_ask(self) -> bool:
        """Whether the gateway answers, or this caller is the one that tries again."""
        with self._lock:
            now_s = self._now_s()
            if self._failed_s is None:
                return True
            if now_s < self._failed_s + self._retry_interval_s:
                return False
            self._failed_s = now_s
            return True

    def _failure(self, key: _Key, hold_s: int, problem: str) -> Allowed:
        with self._lock:
            self._failed_s = self._now_s()
        return self._without(key, hold_s, problem)

    def _refused(self, key: _Key, problem: str) -> Allowed:
        with self._lock:
            self._failed_s = None
        self._notices.warn(f"the gateway refuses checks of {key[1]}: {problem}")
        return self._policy(key[1], problem)

    def _without(self, key: _Key, hold_s: int, problem: str) -> Allowed:
        self._notices.warn(f"checks are answered without the gateway: {problem}")
        with self._lock:
            # An older yes was said to every caller. Who asks for a hold must not share it with them.
            stale = None if hold_s else self._recent(key, self._stale_age_max_s)
        return stale._replace(problem=problem) if stale is not None else self._policy(key[1], problem)

    def _policy(self, feature: str, problem: str) -> Allowed:
        policy = self._policies.get(feature, self._default) if isinstance(feature, str) else self._default
        return Allowed(policy == "allow", f"fallback_{policy}", NOTHING_KNOWN, 0.0, problem)


def _key(account: str, feature: str, quantity: Quantity, used: Quantity | None) -> _Key:
    if not isinstance(account, str) or not isinstance(feature, str):
        raise TypeError("account and feature must be text")
    return account, feature, _text(quantity), None if used is None else _text(used)


def _text(quantity: Quantity) -> str:
    # A float is what its shortest text says, as in events.
    return f"{Decimal(repr(quantity) if isinstance(quantity, float) else quantity):f}"


def _body(key: _Key, hold_s: int) -> bytes:
    account, feature, quantity, used = key
    wanted: dict[str, Any] = {"account": account, "feature": feature, "quantity": quantity}
    if used is not None:
        wanted["used"] = used
    if hold_s:
        wanted["hold_s"] = hold_s
    return json.dumps(wanted).encode()


def _document(answer: Answer) -> Mapping[str, Any] | None:
    """The answer of a gateway; None if something else answered."""
    try:
        document = json.loads(answer.body) if answer.status == 200 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("reason"), str):
        return None
    return document if isinstance(document.get("allowed"), bool) else None


_live: Final[weakref.WeakSet[Access]] = weakref.WeakSet()


def _forget_all() -> None:
    for access in list(_live):
        access._reset()  # noqa: SLF001  # this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
