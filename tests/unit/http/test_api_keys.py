"""API keys are stored as hashes, compared in constant time, and rejected once revoked."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from pipeline.http.api_keys import ApiKey, KeyFile, Role, create_key, load_keys, revoke_key
from schemas.errors import InvalidInput
from tests.worlds.clock import ManualClock

CLOCK = ManualClock(1_795_255_200_000)
"""It stands at 2026-11-21T10:00:00Z."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the key file; the file does not exist yet."""
    return tmp_path / "keys" / "api_keys.jsonl"


def test_a_created_key_is_verified_with_its_role_and_account(path: Path) -> None:
    """Create, store, verify."""
    text, key = create_key(path, Role.READ, CLOCK, account="acme")

    assert KeyFile(path).verify(text) == key
    assert (key.role, key.account, key.created) == (Role.READ, "acme", "2026-11-21T10:00:00Z")


def test_the_file_contains_no_key_and_only_its_owner_may_read_it(path: Path) -> None:
    """A copy of the file must not be enough to send usage."""
    text, _ = create_key(path, Role.ADMIN, CLOCK)

    assert text.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"), id="wrong secret"),
        pytest.param(lambda text: "tm_" + "0" * 12 + text[15:], id="unknown id"),
        pytest.param(lambda text: text + " ", id="trailing space"),
        pytest.param(lambda text: text[3:], id="no prefix"),
        pytest.param(lambda _: "", id="empty"),
        pytest.param(lambda _: "tm_é", id="not ASCII"),
    ],
)
def test_a_text_that_is_not_the_key_is_refused(path: Path, forged: object) -> None:
    """Only the exact text is valid."""
    text, _ = create_key(path, Role.ADMIN, CLOCK)
    assert callable(forged)

    assert KeyFile(path).verify(forged(text)) is None


def test_a_running_gateway_notices_new_and_revoked_keys(path: Path) -> None:
    """A revocation must work without a restart."""
    keys = KeyFile(path)
    first, key = create_key(path, Role.INGEST, CLOCK)
    assert keys.verify(first) is not None

    second, _ = create_key(path, Role.INGEST, CLOCK)
    assert revoke_key(path, key.id) == key

    assert keys.verify(first) is None
    assert keys.verify(second) is not None


def test_a_file_broken_by_an_editor_keeps_the_previous_keys_and_is_reported(path: Path) -> None:
    """An editing mistake must not lock out every producer. A revocation works once the file is repaired."""
    text, _ = create_key(path, Role.INGEST, CLOCK)
    keys = KeyFile(path)
    good = path.read_text()

    path.write_text(good + "{half a line\n")

    assert keys.verify(text) is not None
    assert "line 2" in keys.problem

    path.write_text(good)

    assert keys.verify(text) is not None
    assert keys.problem == ""


def test_a_file_that_could_not_be_opened_is_read_again_although_it_did_not_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the owner changed, or no descriptor was free the last time: a revoked key must not stay valid."""
    text, key = create_key(path, Role.READ, CLOCK)
    keys = KeyFile(path)
    revoke_key(path, key.id)

    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        patched.setattr(Path, "open", refuse)
        assert keys.verify(text) == key
        assert "Permission denied" in keys.problem

    assert keys.verify(text) is None
    assert not keys.problem


def test_a_file_that_is_broken_at_the_start_is_refused_with_its_line(path: Path) -> None:
    """At the start there are no previous keys to keep."""
    path.parent.mkdir()
    path.write_text('\n{"id": "x"}\n')

    with pytest.raises(InvalidInput, match="line 2"):
        KeyFile(path)


def test_a_deleted_file_revokes_all_keys(path: Path) -> None:
    """Deleting the file is the fastest way to revoke every key."""
    text, _ = create_key(path, Role.INGEST, CLOCK)
    keys = KeyFile(path)

    path.unlink()

    assert keys.verify(text) is None


def test_keys_created_at_the_same_time_are_all_kept(path: Path) -> None:
    """Each change replaces the whole file, so two changes must not overlap."""
    threads = [threading.Thread(target=create_key, args=(path, Role.INGEST, CLOCK)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(load_keys(path)) == 8


def test_revoking_an_unknown_key_lists_the_existing_ones(path: Path) -> None:
    """A typing mistake must not pass for a revocation."""
    _, key = create_key(path, Role.INGEST, CLOCK)

    with pytest.raises(InvalidInput, match=key.id):
        revoke_key(path, "nobody")


@pytest.mark.parametrize("account", ["", "a" * 257], ids=["empty", "too long"])
def test_an_impossible_account_is_refused(path: Path, account: str) -> None:
    """Such a key could never write an event."""
    with pytest.raises(InvalidInput, match="account"):
        create_key(path, Role.INGEST, CLOCK, account=account)


@pytest.mark.parametrize(
    ("role", "ingest", "read", "admin"),
    [
        pytest.param(Role.INGEST, True, False, False, id="ingest"),
        pytest.param(Role.READ, False, True, False, id="read"),
        pytest.param(Role.ADMIN, True, True, True, id="admin"),
    ],
)
def test_a_role_may_do_its_own_work_and_admin_everything(role: Role, ingest: bool, read: bool, admin: bool) -> None:
    """Checks the table of roles."""
    key = ApiKey(id="0" * 12, role=role, hash="0" * 64, created="")

    assert (key.may(Role.INGEST), key.may(Role.READ), key.may(Role.ADMIN)) == (ingest, read, admin)
