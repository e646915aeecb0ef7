"""Signatures of control records, marks and distinct members: what is signed, and what a producer cannot forge (S2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.signing import distinct_member, fingerprint, hash_key, mark, sign, signature_holds
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC

SECRET = b"a secret of thirty-two characters"
OTHER = b"another secret of enough length"
VALUE = b'{"log_id":"a","partitions":2}'
SIGNATURE = sign(SECRET, EVENTS_TOPIC, 1, "tick", VALUE)
KEY = hash_key(SECRET)


def test_a_genuine_signature_is_valid() -> None:
    """The same position, kind and value, under the same secret."""
    assert signature_holds(SECRET, EVENTS_TOPIC, 1, "tick", VALUE, SIGNATURE)


@pytest.mark.parametrize(
    ("secret", "topic", "partition", "kind", "value", "signature"),
    [
        pytest.param(OTHER, EVENTS_TOPIC, 1, "tick", VALUE, SIGNATURE, id="another secret"),
        pytest.param(SECRET, REPORTS_TOPIC, 1, "tick", VALUE, SIGNATURE, id="moved to another topic"),
        pytest.param(SECRET, EVENTS_TOPIC, 0, "tick", VALUE, SIGNATURE, id="moved to another partition"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "genesis", VALUE, SIGNATURE, id="under another kind"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "tick", VALUE + b" ", SIGNATURE, id="value with a space more"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "tick", VALUE, b"", id="no signature"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "tick", VALUE, SIGNATURE[:-1], id="cut short"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "tick", VALUE, SIGNATURE.upper(), id="in capitals"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "tick", VALUE, b"\xff" * 64, id="no text at all"),
        pytest.param(SECRET, EVENTS_TOPIC, 1, "ti\nck", VALUE, SIGNATURE, id="kind with a line break"),
    ],
)
def test_a_signature_is_valid_at_its_own_position_only(
    secret: bytes, topic: str, partition: int, kind: str, value: bytes, signature: bytes
) -> None:
    """A genuine record that is copied elsewhere or changed is a forgery."""
    assert not signature_holds(secret, topic, partition, kind, value, signature)


NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(["a", "ab", "1:a", "2:ab", "abc", "bc", "c"])


@given(NAMES, NAMES, NAMES, NAMES)
def test_each_identity_has_its_own_mark(account: str, event_id: str, other: str, other_id: str) -> None:
    """The border between account and id matters. The mark fits Redis' integer sets."""
    bucket_hash, member = mark(KEY, account, event_id)

    assert 0 <= bucket_hash < 2**32
    assert -(2**63) <= member < 2**63
    same = (account, event_id) == (other, other_id)
    assert (mark(KEY, other, other_id) == (bucket_hash, member)) is same


def test_marks_and_distinct_members_cannot_be_worked_out_without_the_secret() -> None:
    """Nobody can craft an id whose mark equals that of another account's event."""
    other = hash_key(OTHER)

    assert mark(KEY, "acme", "1") != mark(other, "acme", "1")
    assert distinct_member(KEY, "acme") != distinct_member(other, "acme")


@given(st.text(max_size=30), st.text(max_size=30))
def test_each_distinct_value_has_its_own_member(text: str, other: str) -> None:
    """The member fits 64 signed bits."""
    member = distinct_member(KEY, text)

    assert -(2**63) <= member < 2**63
    assert (member == distinct_member(KEY, other)) is (text == other)


@pytest.mark.parametrize("secret", [b"x" * 16, b"x" * 64, b"x" * 500], ids=["16", "64", "500 characters"])
def test_a_fingerprint_identifies_a_secret_without_revealing_it(secret: bytes) -> None:
    """Whoever can read the counts in the store can read the fingerprint."""
    assert fingerprint(secret) != fingerprint(secret + b"x")
    assert len(fingerprint(secret)) == 16
    assert fingerprint(secret) not in hash_key(secret).hex()
