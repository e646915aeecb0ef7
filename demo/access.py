"""The demo's last part: an application asks whether an account may use a feature, before and after an upgrade."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

from demo import plan
from demo.answers import Check, check_of
from demo.story import Story
from demo.stripe import StripeAccount
from pipeline.commands.billing import link
from pipeline.commands.catalog import apply_file, plan_file
from pipeline.local.dev import Dev
from pipeline.webhooks.linking import Wish
from schemas.errors import OperatorNeeded

ACTOR: Final = "demo"
LOOK_S: Final = 0.05
CHECK_PATH: Final = "/v1/access/check"

Until = Callable[[Callable[[], Awaitable[bool]], str], Awaitable[None]]


class AccessWalk:
    """One more customer, who buys a plan of the catalog, is denied a feature, and upgrades at Stripe."""

    def __init__(self, dev: Dev, story: Story, step: Callable[[str], None], until: Until) -> None:
        """`until` awaits a condition, and raises if it does not come."""
        self._settings = dev.settings()
        self._story = story
        self._step = step
        self._until = until
        self._stripe = StripeAccount(dev.stripe_url)
        headers = {"Authorization": f"Bearer {dev.api_key}"}
        self._gateway = httpx.AsyncClient(base_url=dev.gateway_url, timeout=60, headers=headers)

    async def run(self) -> None:
        """Apply the catalog, and ask before and after the upgrade. Closes all connections."""
        try:
            self._step("Selling plans: tidemark catalog plan, and apply; one more customer buys the plan starter")
            await self._apply()
            subscription = await self._sign_up()
            denied = await self._check(plan.ASKED_FEATURE)
            self._story.check_denied = None if denied is None or denied.allowed else denied
            self._step("The customer upgrades at Stripe, and the application asks again and again")
            began_s = asyncio.get_running_loop().time()
            await self._stripe.change_price(subscription, await self._stripe.price_of(plan.BUSINESS_PRICE))
            self._story.check_allowed = await self._allowed(plan.ASKED_FEATURE)
            self._story.check_allowed_after_s = asyncio.get_running_loop().time() - began_s
        finally:
            await self._stripe.close()
            await self._gateway.aclose()

    async def _apply(self) -> None:
        planned = (await plan_file(self._settings, plan.CATALOG)).plan
        if planned is None:
            raise OperatorNeeded(f"{plan.CATALOG} is no catalog any more: tidemark catalog plan {plan.CATALOG}")
        await apply_file(self._settings, planned, ACTOR, "the demo's plans", lambda _: None)

    async def _sign_up(self) -> dict[str, Any]:
        """A customer of the plan starter; returns the subscription when the application can ask for the account."""
        # The upgrade's webhook is what is measured here, and not how a lost one is found.
        await self._stripe.end_faults()
        customer, card = await self._stripe.customer(plan.NEW_ACCOUNT)
        subscription = await self._stripe.buy(customer, card, await self._stripe.price_of(plan.STARTER_PRICE))
        await link(self._settings, [Wish(plan.NEW_ACCOUNT, customer, None, ACTOR, "")])
        await self._allowed(plan.STARTER_FEATURE)
        return subscription

    async def _allowed(self, feature: str) -> Check:
        """Ask until the answer is yes."""
        found: list[Check] = []

        async def is_allowed() -> bool:
            check = await self._check(feature)
            if check is not None and check.allowed:
                found.append(check)
            return bool(found)

        await self._until(is_allowed, f"{plan.NEW_ACCOUNT} to be allowed {feature}")
        return found[0]

    async def _check(self, feature: str) -> Check | None:
        """What the gateway answers now; None while it does not know the catalog."""
        asked = {"account": plan.NEW_ACCOUNT, "feature": feature}
        answer = await self._gateway.post(CHECK_PATH, json=asked)
        return check_of(answer.json()) if answer.is_success else None
