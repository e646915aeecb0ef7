"""Metadata of objects (docs.stripe.com/api/metadata)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stripe_simulator.errors import ApiError

KEYS_MAX: Final = 50
KEY_CHARACTERS_MAX: Final = 40
VALUE_CHARACTERS_MAX: Final = 500


def merged(old: Mapping[str, str], wanted: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata after a request: None clears all keys, an empty value removes its key. Raises `ApiError`."""
    if wanted is None:
        return {}
    limits = "Metadata {} can have up to {} characters, but you passed in {}."
    for key, value in wanted.items():
        if len(key) > KEY_CHARACTERS_MAX:
            raise ApiError(400, limits.format("keys", KEY_CHARACTERS_MAX, len(key)), param="metadata")
        if len(value) > VALUE_CHARACTERS_MAX:
            message = limits.format("values", VALUE_CHARACTERS_MAX, len(value))
            raise ApiError(400, f"{message} Invalid value: {value[:20]}…", param=f"metadata[{key}]")
    result = {key: value for key, value in {**old, **wanted}.items() if value != ""}
    if len(result) > KEYS_MAX:
        raise ApiError(400, f"You can have up to {KEYS_MAX} metadata keys.", param="metadata")
    return result
