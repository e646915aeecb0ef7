"""Trials: one for each account, mailbox and card; bought early for less; and what becomes of them."""

from __future__ import annotations

import asyncio
import json
from typing import Final

import pytest

from aggregators.notices import stripe_notice
from pipeline.changes.operating import accept
from pipeline.changes.pages import PAGE_MS
from pipeline.changes.trials import LOOK_AGAIN_MS, follow
from schemas.access import Reason
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.notices import NoticeKind
from schemas.plan_changes import ChangeKind, Operation, OperationState, Refusal, RefusalCode
from schemas.trials import KEYS_KEPT_MS, TrialState
from tests.worlds.changing import ACME, BACK, CARDS
from tests.worlds.ending import Ends
from tests.worlds.trying import START_MS, THREE, begun, heard, opened, states, tried

FLAGS: Final = CARDS.replace("card], ", "card], repeated_card: flag, ")
OTHER: Final = "5555555555554444"


async def test_scenario_15_a_trial_of_thirty_days_is_free_and_then_paid() -> None:
    """Three locations: nothing until day 30, 44700 on it. Usage is nobody's until then, and the plan is there."""
    business = await opened()
    await begun(business)
    (trial,) = await business.sql.trials.listed()
    end_ms = business.at_stripe()["trial_end"] * 1_000

    assert (trial.state, trial.subscription) == (TrialState.RUNNING, business.subscription)
    assert end_ms == trial.ends_ms == START_MS + 30 * DAY_MS
    assert (business.invoices(), await business.reason("pos")) == ([0], Reason.TRIAL)
    due = [row.binding for row in await business.sql.due_bindings(10)]
    planned = [(binding.billing.value, binding.effective_from_ms) for binding in due]
    assert planned[-1] == ("mapped", end_ms)
    assert {billing for billing, _ in planned[:-1]} <= {"free"}

    business.clock.ms = end_ms + 2 * HOUR_MS
    await heard(business)
    assert (business.invoices(), await business.reason("pos")) == ([0, 44700], Reason.INCLUDED)
    assert await states(business) == [TrialState.CONVERTED]


async def test_scenario_16_who_buys_on_day_12_pays_less_once() -> None:
    """18 of 30 days are left: 30 % of 44700 once, and 44700 a month later."""
    business = await opened()
    await begun(business)
    business.clock.ms += 12 * DAY_MS
    await heard(business)
    quote, operation = await business.changed("pro", quantities=THREE)
    (code,) = business.stripe.pages("GET /v1/promotion_codes", {})

    assert (quote.decided.row, quote.total.minor, quote.subtotal_minor, quote.ours_minor) == (4, 31290, 44700, 44700)
    assert quote.words == "You will be charged $312.90 today, and your next invoice on March 13 will be $447.00."
    assert (operation.state, business.invoices(), quote.is_differing) == (OperationState.DONE, [0, 31290], False)
    assert (code["customer"], code["max_redemptions"], code["active"]) == (business.customer, 1, False)
    assert code["expires_at"] * 1_000 == START_MS + 30 * DAY_MS

    business.clock.ms = START_MS + 12 * DAY_MS + 28 * DAY_MS + 2 * HOUR_MS
    await heard(business)
    assert business.invoices() == [0, 31290, 44700]
    assert await states(business) == [TrialState.CONVERTED]


async def test_the_code_of_a_purchase_that_failed_ends_with_the_trial() -> None:
    """The card does not pay: the trial goes on, nothing was redeemed, and nobody else can redeem the code."""
    business = await opened()
    await begun(business)
    quote = await business.quoted("pro", quantities=THREE)
    card = {"type": "card", "card": {"number": "4000000000000341", "exp_month": 12, "exp_year": 2034}}
    method = business.stripe.call("POST /v1/payment_methods", card)["id"]
    business.stripe.call("POST /v1/payment_methods/{payment_method}/attach", {"customer": business.customer}, method)
    changed = {"default_payment_method": method}
    business.stripe.call("POST /v1/subscriptions/{subscription_exposed_id}", changed, business.subscription)
    _, operation = await business.accepted(quote)
    (code,) = business.stripe.pages("GET /v1/promotion_codes", {})

    assert (operation.state, business.at_stripe()["status"]) == (OperationState.FAILED, "trialing")
    assert (business.at_stripe()["discounts"], code["times_redeemed"]) == ([], 0)
    assert (code["customer"], code["max_redemptions"]) == (business.customer, 1)


async def test_another_account_with_the_same_mailbox_gets_no_trial() -> None:
    """Whatever the address looks like; the message says by what it was found."""
    business = await opened()
    await business.name_customer("Ann.Lee+work@gmail.com")
    assert isinstance(await tried(business), Operation)
    await business.join("other", "")
    await business.name_customer("annlee@googlemail.com")
    refused = await tried(business)

    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (RefusalCode.TRIAL_USED, "trial")
    assert "e-mail address" in refused.message
    assert await states(business) == []


async def test_a_trial_that_was_taken_since_the_quote_is_refused() -> None:
    """Both accounts had a quote before either of them accepted."""
    business = await opened()
    await business.name_customer("ann@acme.example")
    first = await business.quoted("pro", ChangeKind.TRIAL, by_page=True)
    await business.join("other", "")
    await business.name_customer("ann@acme.example")
    second = await business.quoted("pro", ChangeKind.TRIAL, by_page=True)
    taken = [await accept(business.parts(), each.account, each.id, "ann", BACK) for each in (first, second)]

    assert [isinstance(each, Refusal) for each in taken] == [False, True]
    assert (await states(business), await business.sql.plan_changes.operation(second.id)) == ([], None)


async def test_an_account_gets_no_second_trial_after_it_canceled() -> None:
    """Nor with another customer."""
    business = await opened()
    await begun(business)
    business.stripe.call("DELETE /v1/subscriptions/{subscription_exposed_id}", {}, business.subscription)
    await heard(business)
    assert await states(business) == [TrialState.EXPIRED]
    refused = await tried(business)
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.TRIAL_USED

    business.clock.ms += MINUTE_MS
    customer = str(business.stripe.call("POST /v1/customers")["id"])
    await business.link(ACME, customer, business.clock.ms)
    again = await tried(business)
    assert isinstance(again, Refusal)
    assert again.code is RefusalCode.TRIAL_USED


async def test_two_tabs_begin_one_trial() -> None:
    """The second page takes the reservation over and ends the first page."""
    business = await opened()
    first = await tried(business)
    business.clock.ms += MINUTE_MS
    second = await tried(business)
    assert isinstance(first, Operation)
    assert isinstance(second, Operation)
    open_ = [each["id"] for each in business.stripe.pages("GET /v1/checkout/sessions", {"status": "open"})]

    assert (open_, await states(business)) == ([second.session], [TrialState.RESERVED])
    business.pays(second.session)
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]


async def test_two_tabs_at_the_same_time_begin_one_trial() -> None:
    """Either one is refused because the other is being carried out, or its page is ended."""
    business = await opened()
    seats = [{"locations": number} for number in (1, 2)]
    quotes = [await business.quoted("pro", ChangeKind.TRIAL, by_page=True, quantities=each) for each in seats]
    found = await asyncio.gather(*(accept(business.parts(), ACME, quote.id, "ann", BACK) for quote in quotes))
    made = [each[1] for each in found if not isinstance(each, Refusal)]
    refused = [each.code for each in found if isinstance(each, Refusal)]
    open_ = [each["id"] for each in business.stripe.pages("GET /v1/checkout/sessions", {"status": "open"})]

    assert (len(open_), len(made) + len(refused)) == (1, 2)
    assert open_[0] in [operation.session for operation in made]
    assert refused in ([], [RefusalCode.IN_FLIGHT])
    assert await states(business) == [TrialState.RESERVED]


async def test_a_page_that_is_left_gives_the_keys_back() -> None:
    business = await opened()
    await business.name_customer("ann@acme.example")
    assert isinstance(await tried(business), Operation)
    business.clock.ms += PAGE_MS + LOOK_AGAIN_MS + MINUTE_MS
    await heard(business)
    assert await states(business) == [TrialState.RELEASED]

    await business.join("other", "")
    await business.name_customer("ann@acme.example")
    assert isinstance(await tried(business), Operation)


async def test_a_page_that_is_open_is_looked_at_again() -> None:
    business = await opened()
    await tried(business)
    business.clock.ms += 10 * MINUTE_MS
    await heard(business)

    assert await states(business) == [TrialState.RESERVED]


async def test_a_repeated_card_ends_the_trial() -> None:
    """The card is known only after the checkout: it pays from then on."""
    business = await opened()
    await begun(business)
    await business.join("other", "")
    await begun(business)

    assert (business.at_stripe()["status"], business.invoices()) == ("active", [0, 44700])
    assert await states(business) == [TrialState.REFUSED]
    await business.join("third", "")
    await begun(business, OTHER)
    assert await states(business) == [TrialState.RUNNING]


async def test_a_mailbox_that_is_known_only_after_the_checkout_counts_too() -> None:
    """Stripe's page asked for the address."""
    business = await opened()
    await business.name_customer("ann@acme.example")
    await begun(business)
    await business.join("other", "")
    operation = await tried(business)
    assert isinstance(operation, Operation)
    await business.name_customer("Ann+2@acme.example")
    business.pays(operation.session, OTHER)
    await heard(business)

    assert (business.at_stripe()["status"], await states(business)) == ("active", [TrialState.REFUSED])


async def test_scenario_15_reminders_go_out_on_days_23_and_29_and_only_while_they_are_true() -> None:
    business = await opened()
    await begun(business)
    outbox = business.sql.notices
    reminded: dict[str, tuple[int, int]] = {}
    for day in range(1, 31):
        business.clock.ms = START_MS + day * DAY_MS
        for fact in await outbox.facts(NoticeKind.TRIAL_ENDS, business.clock.ms):
            notice = stripe_notice(business.log_id, fact, business.clock.ms, ())
            assert notice is not None
            reminded.setdefault(notice.id, (day, json.loads(notice.body)["data"]["days"]))
    assert list(reminded.values()) == [(23, 7), (29, 1)]

    business.clock.ms = START_MS + 29 * DAY_MS
    business.stripe.simulator.catch_up()
    await business.changed("pro", quantities=THREE)
    await business.settle()
    assert await outbox.facts(NoticeKind.TRIAL_ENDS, business.clock.ms) == []


async def test_a_repeated_card_is_shown_if_the_catalog_says_so() -> None:
    business = await opened(FLAGS)
    await begun(business)
    await business.join("other", "")
    await begun(business)
    (trial,) = await business.sql.trials.listed("other")

    assert (trial.state, trial.is_flagged) == (TrialState.RUNNING, True)
    assert business.at_stripe()["status"] == "trialing"


async def test_a_card_on_file_that_had_a_trial_is_refused_at_once() -> None:
    business = await opened(card="pm_card_visa")
    assert (await business.changed("pro", ChangeKind.TRIAL))[1].state is OperationState.DONE
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]
    await business.join("other", "pm_card_visa")
    refused = await business.ask("pro", ChangeKind.TRIAL)

    assert isinstance(refused, Refusal)
    assert "its card" in refused.message
    assert business.subscriptions() == []


async def test_a_trial_without_a_card_ends_with_nothing() -> None:
    business = await opened()
    await begun(business, "")
    business.clock.ms += 31 * DAY_MS
    await heard(business)

    assert (business.at_stripe()["status"], await states(business)) == ("canceled", [TrialState.EXPIRED])
    assert await business.reason("pos") is Reason.TRIAL_OVER


async def test_a_failed_purchase_of_a_trial_gives_the_keys_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe stored a failure of its own, so nobody knows the page."""
    business = await opened()
    quote = await business.quoted("pro", ChangeKind.TRIAL)

    async def fails(*_: object) -> None:
        return None

    with monkeypatch.context() as broken:
        broken.setattr(business.client, "open_checkout", fails)
        assert (await business.accepted(quote))[1].state is OperationState.FAILED
    assert await states(business) == [TrialState.RELEASED]
    assert isinstance(await tried(business), Operation)


async def test_a_trial_whose_page_was_paid_while_another_was_asked_for_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second operation fails, and the trial is not released."""
    business = await opened()
    first = await tried(business)
    assert isinstance(first, Operation)
    quote = await business.quoted("pro", ChangeKind.TRIAL, quantities={"locations": 1})
    real = business.client.open_sessions

    async def pays_first(customer: str) -> object:
        business.pays(first.session)
        return await real(customer)

    monkeypatch.setattr(business.client, "open_sessions", pays_first)
    found = await accept(business.parts(), ACME, quote.id, "ann", BACK)
    assert not isinstance(found, Refusal)
    assert found[1].state is OperationState.FAILED
    await heard(business)
    assert await states(business) == [TrialState.RUNNING]


@pytest.mark.parametrize("call", range(1, 8))
async def test_a_trial_whose_process_ends_is_reserved_and_followed(call: int) -> None:
    """Another process goes on, and the trial begins once."""
    business = await opened(card="pm_card_visa")
    quote = await business.quoted("pro", ChangeKind.TRIAL)
    with pytest.raises(Ends):
        await accept(business.parts([call], after=True), ACME, quote.id, "ann")
    assert (await business.accepted(quote))[1].state is OperationState.DONE
    await heard(business)

    assert (len(business.subscriptions()), await states(business)) == (1, [TrialState.RUNNING])


async def test_keys_are_forgotten_after_two_years() -> None:
    business = await opened()
    await business.name_customer("ann@acme.example")
    await begun(business)
    business.clock.ms += KEYS_KEPT_MS + DAY_MS
    await follow(business.parts(), business.sql.trials)
    await business.join("other", "")
    await business.name_customer("ann@acme.example")

    assert isinstance(await tried(business), Operation)


async def test_scenario_17_a_first_payment_that_is_declined_makes_nothing() -> None:
    """With a card on file Stripe makes no subscription at all; the account has nothing, and can try again."""
    business = await opened(card="pm_card_chargeCustomerFail")
    _, operation = await business.changed("pro")
    await heard(business)

    assert (operation.state, "card" in operation.detail) == (OperationState.FAILED, True)
    assert business.subscriptions() == []
    assert await business.reason("pos") is Reason.NOT_IN_PLAN


async def test_scenario_17_a_first_payment_that_is_open_gives_nothing_and_ends_after_23_hours() -> None:
    """A subscription that was made beside us: its invoice is named; then it has expired, and the account buys anew."""
    business = await opened(card="pm_card_chargeCustomerFail")
    await business.subscribed("pro.v1.location.month.usd")
    await business.settle()
    found = await business.ask("pro")

    assert (business.at_stripe()["status"], await business.reason("pos")) == ("incomplete", Reason.NOT_IN_PLAN)
    assert isinstance(found, Refusal)
    assert (found.row, found.code) == (19, RefusalCode.PAY_FIRST)
    business.clock.ms += 23 * HOUR_MS
    await heard(business)
    (invoice,) = business.stripe.pages("GET /v1/invoices", {"customer": business.customer})
    assert (business.at_stripe()["status"], invoice["status"]) == ("incomplete_expired", "void")
    business.use_card("pm_card_visa")
    assert (await business.changed("pro"))[1].state is OperationState.DONE
