"""Quantities are exact or refused: they agree with fractions, and the reasons agree with the oracle (I5)."""

from __future__ import annotations

import tracemalloc
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.quantities import decimal_text, minor_of, text_of
from oracle import rules
from schemas.meters import QUANTITY_MINOR_MAX
from schemas.reasons import Reason

_decode = msgspec.json.Decoder(float_hook=Decimal).decode

NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.builds(
        lambda whole, fraction, exponent: f"{whole}{fraction}{exponent}",
        st.integers(-(10**12), 10**12),
        st.just("") | st.text("0123456789", min_size=1, max_size=14).map(lambda digits: f".{digits}"),
        st.just("") | st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-"]), st.integers(0, 500)),
    ),
)


def expected(text: str, scale: int, *, allow_negative: bool) -> int | Reason:
    """The expected result by rational arithmetic."""
    minor = Fraction(text) * 10**scale
    if minor.denominator != 1:
        return Reason.TOO_MANY_DIGITS
    if abs(minor) > QUANTITY_MINOR_MAX:
        return Reason.QUANTITY_TOO_LARGE
    return Reason.NEGATIVE_QUANTITY if minor < 0 and not allow_negative else int(minor)


@settings(max_examples=500, deadline=None)
@given(text=NUMBERS, scale=st.integers(0, 12), allow_negative=st.booleans(), quoted=st.booleans())
def test_any_number_is_exactly_its_fraction_or_has_its_reason(
    text: str, scale: int, allow_negative: bool, quoted: bool
) -> None:
    """A JSON number and a decimal text mean the same. Nothing is rounded, and a huge exponent costs little work."""
    value = text if quoted else _decode(text)

    assert minor_of(value, scale, allow_negative) == expected(text, scale, allow_negative=allow_negative)


@pytest.mark.parametrize(
    ("json", "scale", "answer"),
    [
        pytest.param("0", 0, 0, id="zero"),
        pytest.param("-0", 0, 0, id="minus zero"),
        pytest.param("-0.0", 3, 0, id="minus zero with a fraction"),
        pytest.param("0e999", 0, 0, id="zero with an exponent"),
        pytest.param("0.1", 1, 1, id="a tenth, exactly"),
        pytest.param("1.10", 1, 11, id="a zero at the end is no digit too many"),
        pytest.param("1.11", 1, Reason.TOO_MANY_DIGITS, id="one digit too many"),
        pytest.param("1e2", 0, 100, id="an exponent"),
        pytest.param("12000e-3", 0, 12, id="a negative exponent that leaves a whole number"),
        pytest.param("999999999999999999", 0, 10**18 - 1, id="the largest"),
        pytest.param("1000000000000000000", 0, Reason.QUANTITY_TOO_LARGE, id="10^18"),
        pytest.param("1e18", 0, Reason.QUANTITY_TOO_LARGE, id="10^18 by exponent"),
        pytest.param("0.000001", 6, 1, id="the smallest of a scale"),
        pytest.param("1000000", 12, Reason.QUANTITY_TOO_LARGE, id="too large by its scale"),
        pytest.param("9007199254740993", 0, 2**53 + 1, id="beyond doubles"),
        pytest.param("1e400", 0, Reason.QUANTITY_TOO_LARGE, id="1e400"),
        pytest.param("1e-400", 12, Reason.TOO_MANY_DIGITS, id="1e-400"),
        pytest.param("-1e400", 0, Reason.QUANTITY_TOO_LARGE, id="-1e400 is too large before it is negative"),
        pytest.param("-10000000000000000000", 0, Reason.QUANTITY_TOO_LARGE, id="-10^19 as well"),
        pytest.param("10000000000000000000.5", 0, Reason.TOO_MANY_DIGITS, id="too long on both sides"),
        pytest.param("-1", 0, Reason.NEGATIVE_QUANTITY, id="negative"),
        pytest.param("null", 0, Reason.MISSING_QUANTITY, id="null"),
        pytest.param("true", 0, Reason.BAD_QUANTITY, id="true is not one"),
        pytest.param("[1]", 0, Reason.BAD_QUANTITY, id="a list"),
        pytest.param('{"v":1}', 0, Reason.BAD_QUANTITY, id="an object"),
        pytest.param('""', 0, Reason.BAD_QUANTITY, id="empty text"),
        pytest.param('"7"', 0, 7, id="decimal text"),
        pytest.param('"1.5E+1"', 0, 15, id="decimal text with an exponent"),
        pytest.param('" 7"', 0, Reason.BAD_QUANTITY, id="a space"),
        pytest.param('"7\\n"', 0, Reason.BAD_QUANTITY, id="a line break"),
        pytest.param('"+7"', 0, Reason.BAD_QUANTITY, id="a plus sign"),
        pytest.param('"07"', 0, Reason.BAD_QUANTITY, id="a zero before it"),
        pytest.param('".5"', 1, Reason.BAD_QUANTITY, id="no digit before the point"),
        pytest.param('"5."', 1, Reason.BAD_QUANTITY, id="no digit after the point"),
        pytest.param('"1_000"', 0, Reason.BAD_QUANTITY, id="an underscore"),
        pytest.param('"1,5"', 1, Reason.BAD_QUANTITY, id="a comma"),
        pytest.param('"0x10"', 0, Reason.BAD_QUANTITY, id="hexadecimal"),
        pytest.param('"NaN"', 0, Reason.BAD_QUANTITY, id="NaN"),
        pytest.param('"Infinity"', 0, Reason.BAD_QUANTITY, id="Infinity"),
        pytest.param('"١"', 0, Reason.BAD_QUANTITY, id="a digit of another script"),
        pytest.param(f'"{"1" * 65}"', 0, Reason.BAD_QUANTITY, id="65 characters"),
        pytest.param('"1e99999"', 0, Reason.QUANTITY_TOO_LARGE, id="decimal text with a large exponent"),
        pytest.param(f'"1e{10**17}"', 0, Reason.BAD_QUANTITY, id="eighteen digits of exponent"),
    ],
)
def test_quantities_at_the_edges(json: str, scale: int, answer: int | Reason) -> None:
    """The results of the fold and of the oracle."""
    assert minor_of(_decode(json), scale, allow_negative=False) == answer
    if answer is Reason.MISSING_QUANTITY:
        return
    (value,) = rules.decode(json.encode()) if not json.startswith("[") else [[1]]
    if isinstance(answer, Reason):
        with pytest.raises(rules.RejectedError, match=answer.value):
            rules._minor(value, scale, allow_negative=False)
    else:
        assert rules._minor(value, scale, allow_negative=False) == answer


def test_an_exponent_of_a_billion_costs_no_memory() -> None:
    """One small event must not fill a worker's memory."""
    tracemalloc.start()
    try:
        answers = [minor_of(Decimal(text), 12, allow_negative=True) for text in ("1e999999999", "1e-999999999")]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert answers == [Reason.QUANTITY_TOO_LARGE, Reason.TOO_MANY_DIGITS]
    assert peak_bytes < 100_000


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        pytest.param("", "", id="empty text"),
        pytest.param(None, "", id="nothing"),
        pytest.param("é\x00 🙂", "é\x00 🙂", id="any characters"),
        pytest.param("x" * 256, "x" * 256, id="256 characters"),
        pytest.param("x" * 257, None, id="257 characters"),
        pytest.param(True, "true", id="true"),
        pytest.param(False, "false", id="false"),
        pytest.param(-7, "-7", id="an integer"),
        pytest.param(2**64, str(2**64), id="an integer beyond 64 bits"),
        pytest.param(10**256 - 1, "9" * 256, id="256 digits"),
        pytest.param(10**256, None, id="257 digits"),
        pytest.param(-(10**255), None, id="a sign and 256 digits"),
        pytest.param(Decimal("1.0"), None, id="a fraction"),
        pytest.param([], None, id="a list"),
        pytest.param({}, None, id="an object"),
    ],
)
def test_texts_of_dimensions_and_distinct_values_are_canonical(value: object, answer: str | None) -> None:
    """One text for one value, at most 256 characters."""
    assert text_of(value) == answer


@given(minor=st.integers(-(10**30), 10**30), scale=st.integers(0, 12))
def test_decimal_texts_are_exact_and_shortest(minor: int, scale: int) -> None:
    """The text for Stripe has no exponent and no trailing zero."""
    text = decimal_text(minor, scale)

    assert Fraction(text) == Fraction(minor, 10**scale)
    assert "e" not in text.lower()
    assert "." not in text or text[-1] not in "0."
    assert minor_of(text, scale, allow_negative=True) in (minor, Reason.QUANTITY_TOO_LARGE)


@pytest.mark.parametrize(
    ("minor", "scale", "expected"),
    [
        (1250, 3, "1.25"),
        (1000, 3, "1"),
        (5, 3, "0.005"),
        (-5, 1, "-0.5"),
        (-50, 1, "-5"),
        (120, 0, "120"),
        (10**30 + 1, 12, "1000000000000000000.000000000001"),
    ],
)
def test_values_are_exact_and_short(minor: int, scale: int, expected: str) -> None:
    """Stripe limits the number of digits, and no float is involved."""
    assert decimal_text(minor, scale) == expected
