"""Checks of a statement before the ClickHouse engine runs it: a single statement, its keyword and its format.

This is only a lexer (clickhouse.com/docs/sql-reference/syntax); the engine parses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    rb"""
    (?P<blank>[\s\0]+|--[^\n]*|\#[\ !][^\n]*|/\*.*?\*/)
    | (?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<text>'(?:[^'\\]|\\.|'')*')
    | (?P<name>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

READ_KEYWORDS: Final = frozenset({"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "("})

# Table functions that only generate rows or wrap a query. Others can reach files, programs or the network.
HARMLESS_TABLE_FUNCTIONS: Final = frozenset({
    "format", "generate_series", "generaterandom", "generateseries", "null", "numbers", "numbers_mt", "primes",
    "sqlstandardvalues", "values", "view", "zeros", "zeros_mt",
})  # fmt: skip

# Ordinary functions that read files or secrets, call other services, or only waste time.
FORBIDDEN_FUNCTIONS: Final = frozenset({
    "addresstoline", "addresstolinewithinlines", "addresstosymbol", "aiclassify", "aiembed", "aiextract", "aifilter",
    "aigenerate", "airedact", "aisimilarity", "aitranslate", "catboostevaluate", "currentrequesturl", "file",
    "filesystemavailable", "filesystemcapacity", "filesystemunreserved", "getclienthttpheader", "getmacro",
    "showcertificate", "sleep", "sleepeachrow",
})  # fmt: skip


class NotAllowed(Exception):
    """The statement is refused. The text is for the client; `code` is ClickHouse's error number."""

    def __init__(self, code: int, message: str, name: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}. ({name})")
        self.code = code


class _Token(NamedTuple):
    kind: str
    text: str
    end: int


class Statement(NamedTuple):
    """The first keyword (upper case, empty for none) and the format of the FORMAT clause, if any.

    If rows follow an INSERT in that format, `source_at` is the offset at which a FROM INFILE clause fits and
    `format_end` the offset after the format's name. Otherwise both are -1.
    """

    keyword: str
    named_format: str | None
    source_at: int = -1
    format_end: int = -1


def read_statement(sql: bytes) -> Statement:
    """Read one statement without the rows of an INSERT.

    Raises `NotAllowed` if a second statement follows, because the engine would run both and mix up their answers.
    Also refuses INTO OUTFILE and FROM INFILE, which would reach files of the server.
    """
    keyword, named_format, source_at, depth, ended, previous = "", None, -1, 0, False, ""
    for token in _tokens(sql):
        word = token.text.upper() if token.kind == "word" else token.text
        if token.text == ";" and token.kind == "other":
            ended = True
            continue
        if ended:
            raise NotAllowed(62, "Syntax error (Multi-statements are not allowed): send one at a time", "SYNTAX_ERROR")
        if word in ("INFILE", "OUTFILE"):
            raise NotAllowed(62, f"Syntax error: {word} names a file of the client", "SYNTAX_ERROR")
        keyword = keyword or word
        depth += {"(": 1, ")": -1}.get(token.text if token.kind == "other" else "", 0)
        if depth == 0 and keyword == "INSERT":
            if previous == "FORMAT" and token.kind == "word":
                return Statement(keyword, token.text, source_at, token.end)
            if word in ("VALUES", "SELECT", "WITH", "WATCH"):
                break
            if word in ("SETTINGS", "FORMAT") and source_at < 0:
                source_at = token.end - len(token.text)
        elif depth == 0 and previous == "FORMAT" and token.kind == "word":
            named_format = token.text
        previous = word if depth == 0 else ""
    return Statement(keyword, named_format)


def check_read_only(sql: bytes, table_functions: AbstractSet[str]) -> None:
    """Raise `NotAllowed` unless the statement only reads this database.

    `table_functions` are the names of all table functions of the engine, in lower case. A forbidden name is refused
    even as the name of a column. The engine's read-only mode is a second check, which some of these functions pass.
    """
    keyword = read_statement(sql).keyword
    if keyword not in READ_KEYWORDS:
        raise NotAllowed(164, f"Cannot execute {keyword or 'an empty'} query in readonly mode", "READONLY")
    outside = table_functions - HARMLESS_TABLE_FUNCTIONS
    previous = ""
    for token in _tokens(sql):
        name = _bare(token).lower() if token.kind in ("word", "name") else ""
        if token.kind == "word" and name in ("insert", "infile", "outfile"):
            raise NotAllowed(164, f"{name.upper()} is not allowed in readonly mode", "READONLY")
        # A function can also be passed by name: `APPLY(file)`, `arrayMap(file, …)`.
        if name in FORBIDDEN_FUNCTIONS or (token.text == "(" and previous in outside):
            raise NotAllowed(
                164, f"Function {name or previous} reaches outside of the database: not allowed here", "READONLY"
            )
        # The engine may read non-ASCII blanks and quotes in ways that this lexer does not know.
        if token.kind == "other" and (token.text in "'\"`\\$" or not token.text.isprintable() or token.text > "~"):
            raise NotAllowed(
                62, "Syntax error: an open quote, or a sign beyond ASCII outside of quotes", "SYNTAX_ERROR"
            )
        previous = name


def _bare(token: _Token) -> str:
    if token.kind == "word":
        return token.text
    return re.sub(r"\\(.)", r"\1", token.text[1:-1]).replace("``", "`").replace('""', '"')


def _tokens(sql: bytes) -> Iterator[_Token]:
    for match in _TOKEN.finditer(sql):
        if match.lastgroup != "blank":
            yield _Token(match.lastgroup or "", match[0].decode("utf-8", "replace"), match.end())
