"""The bodies of what people grant to accounts: the requests and the answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.http.models import Answer, Instant, Words


class OverrideWish(Answer):
    """What is done with the value of a feature, by whom, and why."""

    does: Literal["set", "add", "at_least", "at_most", "deny"]
    value: str = Field(
        default="", description="A whole number, `unlimited`, `true`, `false`, or the JSON of a config; not of `deny`."
    )
    by: Words = Field(description="Who grants it, for the audit, which names the key too.")
    reason: Words = Field(description="Why, for the audit.")
    until: Instant | None = Field(default=None, description="For ever if absent.")
    new_account: bool = Field(default=False, description="Grant it also to an account that nobody knows yet.")


class ContractTermWish(Answer):
    """One term of a contract."""

    feature: Words
    does: Literal["set", "add", "at_least", "at_most", "deny"]
    value: str = ""


class ContractWish(Answer):
    """The terms of a contract."""

    terms: list[ContractTermWish] = Field(min_length=1, max_length=100)
    by: Words
    reason: Words
    until: Instant | None = Field(default=None, description="For ever if absent.")
    new_account: bool = Field(default=False, description="Grant it also to an account that nobody knows yet.")


class OverrideAnswer(Answer):
    """What a person granted to an account, or took from it."""

    number: int
    kind: Literal["contract", "override", "promotion"]
    feature: str
    does: Literal["set", "add", "at_least", "at_most", "deny"]
    value: str
    from_: Instant = Field(alias="from")
    until: Instant | None
    by: str
    reason: str
    revoked_at: Instant | None = Field(description="Null: it is in force.")
    revoked_by: str | None = Field(description="Who took it back; null: it is in force.")
    revoked_reason: str | None = Field(description="Why it was taken back; null: it is in force.")


class OverridesAnswer(Answer):
    """What people granted to an account."""

    account: str
    overrides: list[OverrideAnswer]
