"""What is wrong with a value that pydantic rejects, in the words of JSON instead of those of Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from schemas.spelling import remedy_of

FIELD_CHARACTERS_MAX: Final = 100
TEXT_CHARACTERS_MAX: Final = 80

_NEEDED: Final = {
    "string_type": "a text",
    "dict_type": "{object}",
    "model_type": "{object}",
    "model_attributes_type": "{object}",
    "list_type": "a list",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
_WORDS: Final = {
    "missing": "the field is missing",
    "extra_forbidden": "no such field: remove it or correct its name",
    "int_parsing_size": "the number has too many digits",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters, not {length}",
    "string_pattern_mismatch": "{text} does not match the pattern {pattern}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "value_error": "{error}",
    "json_invalid": "not JSON: {error}",
}


class Problem(NamedTuple):
    """The first thing that is wrong: the field's path with points (empty for the whole value), and what is wrong.
    `missing` means that the field is not there."""

    field: str
    message: str
    missing: bool = False


class Notation(NamedTuple):
    """What an object with fields is called in the language in which a value was written, and what no value is."""

    needed: str
    object: str
    null: str


JSON: Final = Notation("a JSON object", "an object", "null")
YAML: Final = Notation("a map of fields", "a map", "an empty value")


def first_problem(error: ValidationError, notation: Notation = JSON) -> Problem:
    """The first problem of a rejected value."""
    return problems(error, notation)[0]


def problems(error: ValidationError, notation: Notation = JSON) -> list[Problem]:
    """All problems of a rejected value, in pydantic's order."""
    return [
        Problem(
            ".".join(str(part) for part in each["loc"])[:FIELD_CHARACTERS_MAX],
            _message(each["type"], each.get("ctx", {}), each["input"], each["msg"], notation),
            each["type"] == "missing",
        )
        for each in error.errors(include_url=False)
    ]


def json_kind(value: object, notation: Notation = JSON) -> str:
    """What a decoded JSON value is: `null`, `a number`, `a text`, …"""
    if value is None:
        return notation.null
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, Mapping):
        return notation.object
    return "a list" if isinstance(value, list | tuple) else "a number"


def quoted(text: str) -> str:
    """A text as JSON, cut to `TEXT_CHARACTERS_MAX` characters. The end of a longer text is replaced by its length."""
    if len(text) <= TEXT_CHARACTERS_MAX:
        return json.dumps(text, ensure_ascii=False)
    return f"{json.dumps(text[:TEXT_CHARACTERS_MAX], ensure_ascii=False)}… ({len(text)} characters)"


def _message(kind: str, context: Mapping[str, Any], value: object, message: str, notation: Notation) -> str:
    if kind in _NEEDED:
        return f"{_NEEDED[kind].format(object=notation.needed)} is needed, not {json_kind(value, notation)}"
    if kind == "string_pattern_mismatch" and (remedy := remedy_of(context["pattern"], str(value))):
        return f"{quoted(str(value))}: {remedy}"
    if kind in ("literal_error", "enum"):
        return f"must be {str(context['expected']).replace(chr(39), chr(34))}"
    if kind in _WORDS:
        text = str(value)
        return _WORDS[kind].format_map({**context, "text": quoted(text), "length": len(text)})
    return message.replace("Input should be", "must be")
