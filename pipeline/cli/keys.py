"""Commands that create, list, rotate and revoke API keys, for operators."""

from __future__ import annotations

import json
import os
from asyncio import run
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aggregators.instants import format_instant_ms
from pipeline.cli.context import NO_DEV, running, settings
from pipeline.cli.operate import user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.http.api_keys import ApiKey
    from pipeline.settings import Settings
    from schemas.keys import StoredKey

OVERLAP_HOURS: Final = 24
_DAYS: Final = click.IntRange(1, 36_600)
_BY: Final = click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")


@click.group()
def key() -> None:
    """Create, list, rotate and revoke API keys."""


def _keys_file(deployment: Settings) -> Path:
    if running() is None and "TIDEMARK_API_KEYS" not in os.environ:
        raise InvalidInput("TIDEMARK_API_KEYS", f"{NO_DEV}; start it, or name the file that holds the keys' hashes")
    path = deployment.api_keys
    if path is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that holds the keys' hashes")
    return path


def _has_sql(deployment: Settings) -> bool:
    return deployment.sql_url.startswith("postgresql://")


@key.command("create")
@click.option(
    "--role", type=click.Choice(["ingest", "read", "check", "billing", "operator", "finance", "admin"]), required=True
)
@click.option("--account", default=None, help="Restrict the key to one account.")
@click.option("--valid-days", type=_DAYS, default=None, help="Let the key expire after so many days.")
@click.option(
    "--events-per-s", type=click.IntRange(1), default=None, help="Limit what one gateway process takes with the key."
)
@click.option("--note", default="", help="What the key is for; `key list` prints it.")
@click.option("--file", "in_file", is_flag=True, help="Keep the hash in the file TIDEMARK_API_KEYS, not in PostgreSQL.")
@_BY
def key_create(
    role: str,
    account: str | None,
    valid_days: int | None,
    events_per_s: int | None,
    note: str,
    in_file: bool,
    by: str | None,
) -> None:
    """Print a new API key. Only the hash of the key is stored: in PostgreSQL if TIDEMARK_SQL_URL names one."""
    from pipeline.clock import SystemClock
    from pipeline.commands import keys
    from pipeline.http.api_keys import Role, create_key

    deployment = settings()
    if in_file or not _has_sql(deployment):
        if note:
            raise InvalidInput("--note", "is kept in PostgreSQL only: set TIDEMARK_SQL_URL, or leave it out")
        limits = {"valid_days": valid_days, "events_per_s": events_per_s}
        click.echo(create_key(_keys_file(deployment), Role(role), SystemClock(), account, **limits)[0])
        return
    wish = keys.KeyWish(Role(role), account, valid_days, events_per_s, note)
    click.echo(run(keys.create(deployment, wish, by or user())).text)


@key.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Also those that are revoked or expired.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def key_list(with_ended: bool, as_json: bool) -> None:
    """Print the keys, without their secret parts: what each may do, until when, and when a gateway last saw it."""
    from pipeline.clock import SystemClock
    from pipeline.commands import keys
    from pipeline.http.api_keys import load_keys

    deployment = settings()
    rows: list[dict[str, Any]] = []
    if deployment.api_keys is not None:
        now_ms = SystemClock().now_ms()
        rows += [_file_row(each, now_ms) for each in load_keys(deployment.api_keys).values()]
    if _has_sql(deployment):
        stored, now_ms = run(keys.listed(deployment))
        rows += [_row(each, now_ms) for each in stored]
        if len(stored) == keys.LISTED_MAX:
            click.echo(f"tidemark: only the {len(stored)} newest keys of PostgreSQL are listed", err=True)
    for row in rows:
        if with_ended or row["state"] in ("valid", "rotated"):
            click.echo(json.dumps(row) if as_json else _line(row))


@key.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap-hours", type=click.IntRange(0, 8_760), default=OVERLAP_HOURS, show_default=True,
    help="How long the old key is still valid.",
)  # fmt: skip
@click.option("--valid-days", type=_DAYS, help="How long the new key is valid; as long as the old one was if unset.")
@_BY
def key_rotate(key_id: str, overlap_hours: int, valid_days: int | None, by: str | None) -> None:
    """Print a new key with the role, account and limits of key ID, which ends after the overlap.

    Give the new key to the application within the overlap. `key list` shows whether the old one is still in use.
    """
    from pipeline.commands import keys

    rotated = run(keys.rotate(settings(), _checked(key_id), overlap_hours, valid_days, by or user()))
    click.echo(rotated.made.text)
    ends = format_instant_ms(rotated.old.expires_ms or 0)
    click.echo(f"tidemark: the key {rotated.old.id} ends at {ends}", err=True)


@key.command("revoke")
@click.argument("key_id", metavar="ID")
@click.option("--reason", default="", help="Why; the audit keeps it.")
@_BY
def key_revoke(key_id: str, reason: str, by: str | None) -> None:
    """Revoke a key by its ID, the first part after tm_. Gateways refuse the key within 2 seconds."""
    from pipeline.commands import keys
    from pipeline.http.api_keys import load_keys, revoke_key

    deployment, checked = settings(), _checked(key_id)
    if not _has_sql(deployment) or (deployment.api_keys is not None and checked in load_keys(deployment.api_keys)):
        click.echo(f"revoked {revoke_key(_keys_file(deployment), checked).id}")
        return
    click.echo(f"revoked {run(keys.revoke(deployment, checked, by or user(), reason)).id}")


@key.command("history")
def key_history() -> None:
    """Print who created, rotated and revoked which key in PostgreSQL, and when."""
    from pipeline.commands import keys

    for row in run(keys.history(settings())):
        why = f": {row.reason}" if row.reason else ""
        click.echo(f"{format_instant_ms(row.at_ms)}  {row.cause} {row.entity_id}  {row.actor}{why}  {row.after}")


def _checked(key_id: str) -> str:
    """The id in what a person gave, which may be a whole key by mistake: that one is not repeated in messages."""
    from pipeline.http.api_keys import id_of

    return id_of(key_id) or key_id


def _row(each: StoredKey, now_ms: int) -> dict[str, Any]:
    state = "revoked" if each.revoked_ms is not None else "rotated" if each.successor else "valid"
    return {
        "id": each.id, "role": each.role, "account": each.account or None, "events_per_s": each.events_per_s,
        "kept": "sql", "state": state if each.is_valid(now_ms) or state == "revoked" else "expired",
        "created": format_instant_ms(each.created_ms), "by": each.created_by, "expires": _instant(each.expires_ms),
        "successor": each.successor or None, "last_used": (_instant(each.used_ms) or "")[:10] or None,
        "note": each.note,
    }  # fmt: skip


def _file_row(each: ApiKey, now_ms: int) -> dict[str, Any]:
    has_ended = each.expires_ms is not None and each.expires_ms <= now_ms
    return {
        "id": each.id, "role": each.role.value, "account": each.account, "events_per_s": each.events_per_s,
        "kept": "file", "state": "expired" if has_ended else "valid", "created": each.created,
        "expires": _instant(each.expires_ms),
    }  # fmt: skip


def _instant(at_ms: int | None) -> str | None:
    return None if at_ms is None else format_instant_ms(at_ms)


def _line(row: dict[str, Any]) -> str:
    parts = [row["id"], row["role"], row["account"] or "all accounts", row["state"]]
    parts += [f"until {row['expires']}"] if row["expires"] else []
    parts += [f"replaced by {row['successor']}"] if row.get("successor") else []
    parts += [f"{row['events_per_s']} events/s"] if row["events_per_s"] else []
    used = "in the file" if row["kept"] == "file" else f"last used {row['last_used'] or 'never'}"
    return "  ".join([*parts, used, *([row["note"]] if row.get("note") else [])])
