"""The command `explain`: opens the stores, and finds whose an invoice or event is."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from pipeline.explaining.events import explained_event
from pipeline.explaining.export import exported
from pipeline.explaining.quarantine import in_quarantine
from pipeline.explaining.reading import explained_invoice
from pipeline.explaining.stores import ExplainStores
from pipeline.explaining.verifying import Verified, key_text, limited, verified
from pipeline.open import meter_set_in_force, open_corrections, open_usage_evidence, side_tables_of
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.explained import EventExplanation, InvoiceExplanation
from schemas.meters import MeterSet

NAMED_MAX: Final = 10


@contextlib.asynccontextmanager
async def explain_stores(settings: Settings) -> AsyncIterator[ExplainStores]:
    """The stores during the block. Raises `Transient`, `OperatorNeeded` and `InvalidInput`."""
    async with side_tables_of(settings) as (base, tables):
        evidence, reader, close = open_usage_evidence(settings)
        corrections, close_corrections = open_corrections(settings)
        try:

            async def in_force() -> MeterSet | None:
                return await meter_set_in_force(settings)

            looked = in_quarantine(base.log)
            yield ExplainStores(base.clock, tables, evidence, reader, in_force, looked, corrections)
        finally:
            await close_corrections()
            await close()


async def explain(
    settings: Settings, name: str, account: str = "", line: str = ""
) -> InvoiceExplanation | EventExplanation:
    """An invoice or an event, whatever the name is of. Raises `InvalidInput` if nothing has the name, or several."""
    async with explain_stores(settings) as stores:
        owners = await stores.tables.account_records.accounts_of_invoice(name)
        if owners:
            owner = _one(owners, account, name)
            found = await explained_invoice(stores, owner, name, line)
            if found is None or (line and not found.lines):
                raise InvalidInput("--line" if line else "NAME", f"invoice {name} has no line {line!r} to explain")
            return found
        if line:
            raise InvalidInput("NAME", f"{name!r} is no invoice of an account, so it has no lines")
        if not account:
            owners = await stores.evidence.accounts_of(name, NAMED_MAX)
            if not owners:
                message = f"{name!r} is neither an invoice nor an archived event: name the account by --account"
                raise InvalidInput("NAME", f"{message} to look for it in the quarantine too")
        return await explained_event(stores, _one(owners, account, name), name)


async def export(settings: Settings, invoice: str, account: str, line: str, path: Path) -> InvoiceExplanation:
    """Write the signed file of an invoice, or of one line of it, as the new file `path`.

    The file appears when it is whole. Raises `InvalidInput` for an event, and while another export writes the file.
    """
    secret = settings.secret_bytes()
    part = path.with_name(f"{path.name}.part")
    try:
        # Small writes of a command that does nothing else.
        file = part.open("xb")  # closed below
    except FileExistsError:
        message = f"{part} exists: another export writes the file, or one ended half-way; then remove it"
        raise InvalidInput("--out", message) from None
    try:
        found = await explain(settings, invoice, account, line)
        if not isinstance(found, InvoiceExplanation):
            raise InvalidInput("--out", "is for invoices: an event has no hours; leave the option out")
        with file:
            async with explain_stores(settings) as stores:
                async for each in exported(stores, found, secret, secrets.token_hex(16)):
                    file.write(each)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        file.close()
        part.unlink(missing_ok=True)
    return found


def verify(secret: bytes, path: Path, key: str) -> Verified:
    """Check a signed file, with the deployment's secret or the file's own key. Raises `InvalidInput`."""
    with path.open("rb") as file:
        return verified(limited(file), secret, _key(key))


def key_of(secret: bytes, path: Path) -> str:
    """The own key of a file, by which others can check this file and no other one. Raises `InvalidInput`."""
    with path.open("rb") as file:
        return key_text(secret, next(limited(file), b""))


def _key(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if text else None
    except ValueError:
        raise InvalidInput("--key", "is not the key of a file: `tidemark explain key FILE` prints it") from None


def _one(owners: Sequence[str], account: str, name: str) -> str:
    """The account that is asked for, or the only one."""
    if account and owners and account not in owners:
        raise InvalidInput("--account", f"{name} belongs to {', '.join(owners[:NAMED_MAX])}, not to {account!r}")
    if account:
        return account
    if len(owners) > 1:
        raise InvalidInput("--account", f"{name} belongs to several: name one of {', '.join(owners[:NAMED_MAX])}")
    return owners[0]
