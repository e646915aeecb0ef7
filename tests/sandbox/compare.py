"""Compares the answers of two Stripes field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

# These differ between any two accounts and runs.
IDENTITY: Final = frozenset({
    "account_country", "account_name", "client_secret", "created", "fingerprint", "id", "idempotency_key",
    "invoice_prefix", "number", "request", "secret", "updated", "webhooks_delivered_at",
})  # fmt: skip
URLS: Final = ("url", "_pdf")
# Lists whose order means nothing.
UNORDERED: Final = frozenset({"enabled_events", "payment_method_types", "discount_amounts", "total_discount_amounts"})
_ID: Final = re.compile(r"([a-z]+(?:_[a-z]+)*)_(?=[a-zA-Z]*[A-Z0-9])[a-zA-Z0-9]{8,}")
_ABSENT: Final = "absent"


def differences(stripe: Any, other: Any, path: str = "") -> Iterator[str]:
    """One line for each field that differs: its path and both values.

    `IDENTITY`, addresses and what only says which object it is are left out; of an id the kind is compared.
    """
    if isinstance(stripe, Mapping) and isinstance(other, Mapping):
        for key in [*stripe, *(key for key in other if key not in stripe)]:
            if key not in IDENTITY and not str(key).endswith(URLS):
                below = f"{path}.{key}" if path else str(key)
                left, right = (_sorted(side.get(key, _ABSENT), key) for side in (stripe, other))
                yield from differences(left, right, below)
    elif _is_list(stripe) and _is_list(other) and len(stripe) == len(other):
        for place, (left, right) in enumerate(zip(stripe, other, strict=True)):
            yield from differences(left, right, f"{path}[{place}]")
    elif _is_list(stripe) and _is_list(other):
        yield f"{path}: {len(stripe)} entries, and {len(other)}"
    elif (left := _plain(stripe)) != (right := _plain(other)):
        yield f"{path}: {left!r}, and {right!r}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _sorted(value: Any, key: str) -> Any:
    return sorted(value, key=repr) if key in UNORDERED and _is_list(value) else value


def _plain(value: Any) -> Any:
    """A value without what names one object: of an id its prefix."""
    if isinstance(value, str) and (match := _ID.fullmatch(value)):
        return f"{match[1].removesuffix('_test')}_…"
    return value
