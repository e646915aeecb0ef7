"""The catalog: what is counted, what is sold at which prices, and what a plan allows. One file, one version.

A file that has only meters is a catalog that sells nothing, so a meter set file is one too. `tidemark catalog schema`
publishes the format as JSON Schema. `aggregators.catalog` reads a file; what it returns has `extends` copied in and
obeys all rules, so the values here need no check of their own. Prices are text in major units, as people write them;
`aggregators.catalog_prices` makes exact amounts of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from schemas.meters import Meter, MeterSet, Policy, Slug
from schemas.periods import Interval
from schemas.prices import PriceTerms
from schemas.spelling import AMOUNT, CURRENCY, PERCENT, PLAN_NAME, TAX_CODE, plain_amount

UNLIMITED: Final = "unlimited"
QUANTITY: Final = "quantity"
NUMBER_MAX: Final = 10**15
TEXT_MAX: Final = 256

Currency = Annotated[str, StringConstraints(pattern=CURRENCY)]
# In major units. A number may be written without quotes: YAML is read without floats. Equal amounts are equal texts.
Amount = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    StringConstraints(pattern=AMOUNT),
    AfterValidator(plain_amount),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": AMOUNT}]}),
]
Percent = Annotated[str, StringConstraints(pattern=PERCENT)]
Number = Annotated[int, Field(ge=0, le=NUMBER_MAX)]
Positive = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
PlanName = Annotated[str, StringConstraints(pattern=PLAN_NAME)]
VersionNumber = Annotated[int, Field(ge=1, le=999_999_999)]
Text = Annotated[str, StringConstraints(max_length=TEXT_MAX)]
Amounts = dict[Currency, Amount]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


class FeatureType(StrEnum):
    """What a feature is: on or off; a limit on usage of a meter; a number of holders; settings."""

    FLAG = "flag"
    LIMIT = "limit"
    SEAT = "seat"
    CONFIG = "config"


class Merge(StrEnum):
    """What two subscriptions of an account give together. `first`: that of the plan with the higher rank."""

    ANY = "any"
    MAX = "max"
    SUM = "sum"
    FIRST = "first"


class OnError(StrEnum):
    """The answer of a check if the stores do not answer."""

    ALLOW = "allow"
    DENY = "deny"


class Feature(_Value):
    """What a plan can allow. `meter` and the fields after it are of a limit, `holder` and those after it of a seat.

    `warn_percent`: at which parts of the limit, and of what the price includes, a notice is made (docs/notices.md).
    """

    type: FeatureType
    merge: Merge | None = None
    on_error: OnError = OnError.DENY
    description: Text = ""
    stripe_feature: Slug | None = None
    meter: Slug | None = None
    per: Literal["period"] = "period"
    soft: bool = False
    warn_percent: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(default=(80, 100), max_length=10)
    holder: Slug | None = None
    below_active: Literal["refuse"] = "refuse"
    invites_reserve_h: Annotated[int, Field(ge=1, le=8_760)] | None = None

    @property
    def merged_by(self) -> Merge:
        """`merge`, which a flag and a config need not name."""
        return self.merge or (Merge.ANY if self.type is FeatureType.FLAG else Merge.FIRST)


class Add(_Value):
    """A grant of so many more than the plan gives."""

    add: Positive


# True or False for a flag; a number, "unlimited" or Add for a limit; those or "quantity" (the paid quantity of the
# plan's price that names the feature) for a seat; a map of texts, numbers and booleans for a config.
GrantValue = bool | int | str | Add | dict[str, bool | int | str]


def _grant(value: Any) -> GrantValue:
    if isinstance(value, Add | bool) or value in (UNLIMITED, QUANTITY):
        return value  # type: ignore[no-any-return]  # `value` is of the types that were asked for
    if isinstance(value, int) and 0 <= value <= NUMBER_MAX:
        return value
    if isinstance(value, dict) and value.keys() == {"add"}:
        if type(value["add"]) is int and 1 <= value["add"] <= NUMBER_MAX:
            return Add(add=value["add"])
    elif isinstance(value, dict) and value and all(isinstance(each, bool | int | str) for each in value.values()):
        return value
    raise ValueError(
        f"a grant is a number up to {NUMBER_MAX}, unlimited, quantity, {{add: NUMBER}}, true, false, or a map of "
        "settings"
    )


_SCALAR: Final = {"type": ["boolean", "integer", "string"]}
Grant = Annotated[
    GrantValue,
    PlainValidator(_grant),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 0, "maximum": NUMBER_MAX},
                {"enum": [UNLIMITED, QUANTITY]},
                {"type": "object", "minProperties": 1, "additionalProperties": _SCALAR},
            ]
        }
    ),
]
Grants = dict[Slug, Grant]


class ByInterval(_Value):
    """Amounts by interval and currency."""

    day: Amounts = Field(default_factory=dict)
    week: Amounts = Field(default_factory=dict)
    month: Amounts = Field(default_factory=dict)
    year: Amounts = Field(default_factory=dict)

    def amounts(self) -> Iterator[tuple[Interval, Amounts]]:
        """The intervals that have amounts."""
        for interval in Interval:
            if found := getattr(self, interval.value):
                yield interval, found


class TierMode(StrEnum):
    """Graduated: each unit costs what its tier says. Volume: all units cost what the last one's tier says."""

    GRADUATED = "graduated"
    VOLUME = "volume"


def _bound(value: Any) -> int | str:
    if value in ("included", "inf") or (type(value) is int and 1 <= value <= NUMBER_MAX):
        return value  # type: ignore[no-any-return]  # `value` is of the types that were asked for
    raise ValueError(f"a tier ends at a whole number up to {NUMBER_MAX}, at `included` or at `inf`")


UpTo = Annotated[
    int | str,
    PlainValidator(_bound),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": NUMBER_MAX}, {"enum": ["included", "inf"]}]}
    ),
]


class TierLine(_Value):
    """Units up to and with `up_to` cost `price` each, and `flat` once. `included`: the plan's included quantity."""

    up_to: UpTo
    price: Amounts = Field(default_factory=dict)
    flat: Amounts = Field(default_factory=dict)


class PriceLine(ByInterval):
    """What one component of a plan costs.

    A component with a `meter` is billed by usage: the amounts are for each unit, or `tiers` say more. Another component
    is billed ahead: its amounts are for each unit of the seat feature `quantity`, or for the plan. Of such a quantity,
    `included` units cost nothing. `package`: only whole packages of so many units are billed, rounded up; the amounts
    are for each package.
    """

    component: Slug
    name: Text = ""
    quantity: Slug | None = None
    included: Positive | None = None
    meter: Slug | None = None
    unit: Text = ""
    mode: TierMode = TierMode.GRADUATED
    tiers: tuple[TierLine, ...] = Field(default=(), max_length=100)
    package: Annotated[int, Field(ge=2, le=NUMBER_MAX)] | None = None


class Included(_Value):
    """The usage by meter that the base price covers. `on_upgrade`: whether a customer who upgrades within a period has
    the higher quantity from the next period on, or the difference as a credit now."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Positive]
    on_upgrade: Literal["next_period", "now"] = "next_period"

    @property
    def meters(self) -> Mapping[str, int]:
        """The included quantity by meter, in units of the meter."""
        return self.__pydantic_extra__


class TrialEnds(_Value):
    """What becomes of a trial at its end, without a card and with one."""

    no_card: Literal["free", "cancel", "pause"] = "free"
    card: Literal["convert", "cancel", "pause"] = "convert"


class EarlyDiscount(_Value):
    """A discount for who buys before the trial ends: `max_percent` times the share of days that are left."""

    max_percent: Percent
    shape: Literal["remaining_days"] = "remaining_days"


class Trial(_Value):
    """A trial of a plan, once for each key of `once_per` in a family of plans. `grants` are added while it runs.

    A card is known only after the checkout. `repeated_card`: a trial whose card had one before ends, or is shown. The
    days of the reminders before the end are fixed."""

    family: Slug
    days: Annotated[int, Field(ge=1, le=730)]
    card: Literal["optional", "required"] = "optional"
    once_per: tuple[Literal["account", "customer", "email", "card", "domain"], ...] = ("account", "email", "card")
    repeated_card: Literal["end", "flag"] = "end"
    ends: TrialEnds = TrialEnds()
    remind_days: tuple[Literal[7], Literal[1]] = (7, 1)
    grants: Grants = Field(default_factory=dict)
    early_discount: EarlyDiscount | None = None


class PlanCredits(_Value):
    """Credits that a plan gives each period."""

    pool: Slug
    every: Literal["period"] = "period"
    amount: Positive
    rollover_max: Number = 0


class OverLimit(StrEnum):
    """What becomes of a downgrade to a plan that allows less than the account uses."""

    BLOCK_DOWNGRADE = "block_downgrade"
    ALLOW_UNTIL_PERIOD_END = "allow_until_period_end"
    READ_ONLY_EXCESS = "read_only_excess"
    FORCE_AT_END = "force_at_end"


class Plan(_Value):
    """One version of a plan. What a customer has bought never changes: `VERSIONED` fields need another version.

    `rank` orders plans: a change to a higher rank is an upgrade. `spend_cap` limits overage in money, by meter.
    """

    version: VersionNumber
    name: Text = ""
    description: Text = ""
    rank: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    extends: PlanName | None = None
    usage_interval: Interval | None = None
    prices: tuple[PriceLine, ...] = Field(default=(), max_length=20)
    grants: Grants = Field(default_factory=dict)
    included: Included = Included()
    over_limit: dict[Slug, OverLimit] = Field(default_factory=dict)
    spend_cap: dict[Slug, Amounts] = Field(default_factory=dict)
    trial: Trial | None = None
    credits: tuple[PlanCredits, ...] = Field(default=(), max_length=20)

    @model_validator(mode="before")
    @classmethod
    def _none_is_no_price(cls, value: Any) -> Any:
        return {**value, "prices": ()} if isinstance(value, dict) and value.get("prices") == "none" else value


class AddOn(_Value):
    """One version of an add-on: bought beside a plan of `plans`, up to `stack` times."""

    version: VersionNumber
    name: Text = ""
    description: Text = ""
    plans: tuple[Slug, ...] = Field(alias="for", min_length=1, max_length=100)
    price: ByInterval
    grants: Grants = Field(default_factory=dict)
    stack: Annotated[int, Field(ge=1, le=1_000_000)] = 1


# The fields that say what was bought, by name in `Plan` and `AddOn`. The others may change within a version.
VERSIONED: Final = ("usage_interval", "prices", "price", "included", "spend_cap", "trial", "credits", "stack", "grants")


class Pack(_Value):
    """One version of credits that can be bought at once, and what they cost by currency."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Currency, Amount]
    version: VersionNumber = 1
    name: Text = ""
    credits: Positive

    @property
    def amounts(self) -> Mapping[str, str]:
        """What the pack costs, by currency."""
        return self.__pydantic_extra__


class TopUp(_Value):
    """Buy a pack as soon as less than `below` credits are left, at most `month_max` times a month."""

    below: Positive
    pack: Slug
    month_max: Annotated[int, Field(ge=1, le=1_000)]


class CreditPool(_Value):
    """Credits that pay for usage. `covers`: what one unit of a meter costs in credits. Pools are drawn by `order`.

    `ledger`: ours, exact, in units. `stripe`: a credit grant of Stripe, in money. `overdraft`: what happens to usage
    beyond the credits: the next pool pays, it is billed, or it is refused.
    """

    unit: Text = ""
    covers: dict[Slug, Amount] = Field(min_length=1, max_length=100)
    order: Annotated[int, Field(ge=0, le=1_000)] = 0
    mode: Literal["ledger", "stripe"] = "ledger"
    overdraft: Literal["next", "bill", "block"] = "bill"
    packs: dict[Slug, Pack] = Field(default_factory=dict, max_length=100)
    top_up: TopUp | None = None


Days = Annotated[int, Field(ge=0, le=365)]


class Dunning(_Value):
    """When an unpaid account hears of it and loses access, in days; `fallback_plan` is what it has then.

    `urgent_days` and `final_days` count from the first failure, `downgrade_after_final_days` from the last warning,
    `win_back_days` and `give_up_days` from the downgrade. `give_up`: what is done at Stripe then. `void` and
    `uncollectible` end the subscription without a credit and close its open invoices so; `propose` leaves that to a
    person.
    """

    urgent_days: Days = 3
    final_days: Days = 21
    downgrade_after_final_days: Days = 3
    win_back_days: Days = 7
    give_up_days: Days = 30
    give_up: Literal["propose", "void", "uncollectible"] = "propose"
    fallback_plan: Slug | None = None
    suspend_addons: bool = True
    card_expiry_days: tuple[Annotated[int, Field(ge=0, le=60)], ...] = Field(default=(30, 7), max_length=10)


class Changes(_Value):
    """When a change of plan or quantity takes effect."""

    upgrade: Literal["now", "full_price"] = "now"
    downgrade: Literal["period_end"] = "period_end"
    interval_longer: Literal["now", "period_end"] = "now"
    interval_shorter: Literal["period_end"] = "period_end"
    seats_up: Literal["now"] = "now"
    seats_down: Literal["next_invoice", "keep_paid", "prorate"] = "next_invoice"
    quote_minutes: Annotated[int, Field(ge=1, le=1_440)] = 15
    notice_days_price_change: Days = 30


class Coupon(_Value):
    """One version of a discount: a percentage, or an amount in one currency.

    `once`: on one invoice. `repeating`: for `duration_months` from the day on which a customer gets it.
    """

    version: VersionNumber
    name: Annotated[str, StringConstraints(max_length=40)] = ""
    percent_off: Percent | None = None
    amount_off: Amounts = Field(default_factory=dict, max_length=1)
    duration: Literal["once", "repeating", "forever"]
    duration_months: Annotated[int, Field(ge=1, le=120)] | None = None


class Portal(_Value):
    """What a customer may do on the hosted pages of Stripe's customer portal. `change_to`: the plans to choose from."""

    change_to: tuple[Slug, ...] = Field(default=(), max_length=10)
    cancel: Literal["period_end", "never"] = "period_end"
    payment_method: bool = True


class Defaults(_Value):
    """What holds unless a plan says otherwise. `plan` is that of an account without a subscription."""

    plan: Slug | None = None
    billing_mode: Literal["flexible"] = "flexible"
    tax_behavior: Literal["exclusive", "inclusive", "unspecified"] = "exclusive"
    tax_code: Annotated[str, StringConstraints(pattern=TAX_CODE)] | None = None
    automatic_tax: bool = True


class Catalog(_Value):
    """A whole catalog. The meters, `policy` and `retired` are its meter set, under the same version."""

    version: VersionNumber
    meters: tuple[Meter, ...] = Field(max_length=500)
    policy: Policy = Policy()
    retired: tuple[Meter, ...] = Field(default=(), max_length=500)
    currencies: dict[Currency, Annotated[int, Field(ge=0, le=3)]] = Field(default_factory=dict, max_length=200)
    defaults: Defaults = Defaults()
    features: dict[Slug, Feature] = Field(default_factory=dict, max_length=500)
    plans: dict[Slug, Plan] = Field(default_factory=dict, max_length=500)
    addons: dict[Slug, AddOn] = Field(default_factory=dict, max_length=500)
    credit_pools: dict[Slug, CreditPool] = Field(default_factory=dict, max_length=100)
    coupons: dict[Slug, Coupon] = Field(default_factory=dict, max_length=500)
    portal: Portal | None = None
    dunning: Dunning = Dunning()
    changes: Changes = Changes()

    @model_validator(mode="after")
    def _is_a_meter_set(self) -> Self:
        self.meter_set()
        return self

    def meter_set(self) -> MeterSet:
        """What the log and the fold need of the catalog."""
        return MeterSet(version=self.version, meters=self.meters, policy=self.policy, retired=self.retired)

    def sold(self) -> dict[PlanId, Plan | AddOn]:
        """The plans and add-ons, by name and version."""
        named: dict[str, Plan | AddOn] = {**self.plans, **self.addons}
        return {PlanId(name, each.version): each for name, each in named.items()}


class PlanId(NamedTuple):
    """The name and the version of a plan or an add-on; no two have the same."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Price(NamedTuple):
    """The price of a component for an interval in a currency. `key` is its lookup key, for ever.

    `feature` is the seat feature whose quantity is paid, `meter` the slug of the meter whose usage is.
    """

    key: str
    plan: PlanId
    component: str
    exponent: int
    terms: PriceTerms
    feature: str = ""
    meter: str = ""

    @property
    def made_for(self) -> str:
        """What Stripe's price says in its metadata."""
        return f"{self.plan} {self.component}"
