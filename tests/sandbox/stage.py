"""Where the steps of the suite happen: a Stripe, what it answered, and what must be cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import stripe

from tests.services.stripe_sdk import Sdk

VARIABLE: Final = "TIDEMARK_STRIPE_SANDBOX_KEY"
LOOKS: Final = 150
LOOK_INTERVAL_S: Final = 2.0
# Answers to a call that the simulator does not have.
NOT_SIMULATED: Final = 501


class AnyStripe(Protocol):
    """A sandbox of Stripe's, or a simulator."""

    async def __call__(self, name: str, *arguments: Any) -> Any:
        """A call of stripe-python, as in `stripe("v1.customers.create", {...})`, with plain JSON values."""

    async def pause(self) -> None:
        """Let time pass until the next look."""

    def now_s(self) -> float:
        """The present second."""


class Simulated:
    """A simulator on a clock that moves with each pause."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    async def __call__(self, name: str, *arguments: Any) -> Any:
        """A call to the simulator."""
        return await self._sdk(name, *arguments)

    async def pause(self) -> None:
        """Move the clock."""
        await self._sdk.clock.sleep(LOOK_INTERVAL_S)

    def now_s(self) -> float:
        """The simulator's second."""
        return self._sdk.clock.now_ms() / 1_000


class Sandbox:
    """A sandbox of Stripe's. Raises `ValueError` if the key could move money."""

    def __init__(self, key: str, url: str = "") -> None:
        """`url` replaces Stripe's address."""
        if not re.fullmatch(r"(sk|rk)_test_\w+", key):
            raise ValueError(f"{VARIABLE} must begin with sk_test_ or rk_test_: the suite creates and deletes objects")
        stripe.enable_telemetry = False
        addresses: Any = {"api": url, "connect": url, "files": url, "meter_events": url} if url else {}
        self._client: Any = stripe.StripeClient(key, max_network_retries=2, base_addresses=addresses)

    async def __call__(self, name: str, *arguments: Any) -> Any:
        """A call to Stripe."""
        for _ in range(LOOKS):
            # A sandbox takes 25 calls a second.
            with contextlib.suppress(stripe.RateLimitError):
                return await self._call(name, *arguments)
            await asyncio.sleep(1)
        return await self._call(name, *arguments)

    async def _call(self, name: str, *arguments: Any) -> Any:
        answer = await asyncio.to_thread(operator.attrgetter(name)(self._client), *arguments)
        return answer and answer.to_dict()

    async def pause(self) -> None:
        """Wait."""
        await asyncio.sleep(LOOK_INTERVAL_S)

    def now_s(self) -> float:
        """The real second."""
        return time.time()


def is_error(answer: Any) -> bool:
    """Whether an outcome is that of a call that failed."""
    return set(answer) == {"error"}


class StepEnds(Exception):
    """The rest of a step cannot run; the reason is among the answers."""


class Stage:
    """One run of the steps. `now_s` is the start of the run and the same for both Stripes, so that times compare.

    `answers` maps `STEP: LABEL` to an answer or finding, `failures` lists the calls that should not have failed, and
    `measured` has figures that are printed and not compared.
    """

    def __init__(self, stripe: AnyStripe, now_s: int) -> None:
        self.stripe = stripe
        self.now_s = now_s
        self.run = f"{now_s:x}"
        self.answers: dict[str, Any] = {}
        self.failures: list[str] = []
        self.measured: list[str] = []
        self._ids: dict[str, str] = {}
        self._step = ""
        self._cleanup: list[tuple[Any, ...]] = []

    async def play(self, steps: Mapping[str, Callable[[Stage], Awaitable[None]]]) -> None:
        """Run the steps in order, and clean up whatever happens."""
        try:
            for name, step in steps.items():
                self._step = name
                try:
                    await step(self)
                except StepEnds as end:
                    self.failures.append(f"{name}: {end}")
                except (LookupError, TypeError, ValueError) as error:
                    self.failures.append(f"{name}: an answer is not as the step expects: {error!r}")
        finally:
            await self._clean()

    def found(self, label: str, value: Any) -> None:
        """Note what is compared."""
        self.answers[f"{self._step}: {label}"] = value

    async def ask(self, name: str, *arguments: Any) -> Any:
        """A call whose answer is not compared. Raises `StepEnds` if it fails."""
        try:
            return await self.stripe(name, *arguments)
        except stripe.StripeError as error:
            raise StepEnds(f"{name} failed: {error}") from error

    async def say(self, label: str, name: str, *arguments: Any) -> Any:
        """A call whose answer is compared. Raises `StepEnds` if it fails."""
        answer = await self.outcome(label, name, *arguments)
        if is_error(answer):
            raise StepEnds(f"{name} failed: {answer['error']}")
        return answer

    async def outcome(self, label: str, name: str, *arguments: Any) -> Any:
        """A call that may fail: its answer, or status, type, code and parameter of its error, is compared."""
        answer = await self._tried(name, *arguments)
        self.found(label, answer)
        return answer

    async def status(self, label: str, name: str, *arguments: Any) -> int:
        """A call that may fail, of which only the status and, of an error, code and parameter are compared."""
        answer = await self._tried(name, *arguments)
        error = answer["error"] if is_error(answer) else {"status": 200}
        self.found(label, {part: value for part, value in error.items() if part in ("status", "code", "param")})
        return int(error["status"] or 0)

    async def _tried(self, name: str, *arguments: Any) -> Any:
        try:
            return await self.stripe(name, *arguments)
        except stripe.StripeError as error:
            body = getattr(error, "error", None)
            parts = {part: getattr(body, part, None) for part in ("type", "code", "decline_code", "param")}
            return {"error": {"status": error.http_status, **parts}}

    async def until(self, look: Callable[[], Awaitable[Any]], is_done: Callable[[Any], bool]) -> Any:
        """Look until the answer is as wanted, at most `LOOKS` times. Returns the last answer."""
        answer = await look()
        for _ in range(LOOKS):
            if is_done(answer):
                break
            await self.stripe.pause()
            answer = await look()
        return answer

    def keep(self, name: str, identifier: str) -> str:
        """Give an id a name for later steps."""
        self._ids[name] = identifier
        return identifier

    def __getitem__(self, name: str) -> str:
        """An id of an earlier step. Raises `StepEnds` if that step failed."""
        if name not in self._ids:
            raise StepEnds(f"an earlier step did not make {name!r}")
        return self._ids[name]

    def afterwards(self, name: str, *arguments: Any) -> None:
        """A call for the end of the run; the last is the first."""
        self._cleanup.append((name, *arguments))

    async def _clean(self) -> None:
        self._step = "clean up"
        for name, *arguments in reversed(self._cleanup):
            try:
                await self.stripe(name, *arguments)
            except stripe.StripeError as error:
                if error.http_status != NOT_SIMULATED:
                    self.failures.append(f"clean up: {name} {arguments} failed: {error}")
