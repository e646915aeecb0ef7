"""What the ClickHouse server must know of a statement before the engine sees it: how many, which kind, which format.

A lexer only, after clickhouse.com/docs/sql-reference/syntax; the engine does the parsing.
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

# Table functions that only make up rows or wrap a query; every other one can reach a file, a program or a network.
HARMLESS_TABLE_FUNCTIONS: Final = frozenset({
    "format", "generate_series", "generaterandom", "generateseries", "null", "numbers", "numbers_mt", "primes",
    "sqlstandardvalues", "values", "view", "zeros", "zeros_mt",
})  # fmt: skip

# Ordinary functions that read files or secrets, ask other services, or only burn time.
FORBIDDEN_FUNCTIONS: Final = frozenset({
    "addresstoline", "addresstolinewithinlines", "addresstosymbol", "aiclassify", "aiembed", "aiextract", "aifilter",
    "aigenerate", "airedact", "aisimilarity", "aitranslate", "catboostevaluate", "currentrequesturl", "file",
    "filesystemavailable", "filesystemcapacity", "filesystemunreserved", "getclienthttpheader", "getmacro",
    "showcertificate", "sleep", "sleepeachrow",
})  # fmt: skip


class NotAllowed(Exception):
    """The statement may not run here; the text is for the client, `code` is ClickHouse's number."""

    def __init__(self, code: int, message: str, name: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}. ({name})")
        self.code = code


class _Token(NamedTuple):
    kind: str
    text: str


class Statement(NamedTuple):
    """The first keyword (upper case, empty for none) and the output format named at the end, if any."""

    keyword: str
    output_format: str | None

    @property
    def is_insert(self) -> bool:
        """Whether rows may follow the statement."""
        return self.keyword == "INSERT"


def read_statement(sql: bytes) -> Statement:
    """Look at one statement. The rows of an INSERT are not looked at.

    Raises `NotAllowed` where a second statement follows: the engine would run both and mix up their answers.
    """
    keyword, output_format, depth, ended, previous = "", None, 0, False, ""
    for token in _tokens(sql):
        word = token.text.upper() if token.kind == "word" else token.text
        if token.text == ";" and token.kind == "other":
            ended = True
            continue
        if ended:
            raise NotAllowed(62, "Syntax error (Multi-statements are not allowed): send one at a time", "SYNTAX_ERROR")
        keyword = keyword or word
        depth += {"(": 1, ")": -1}.get(token.text if token.kind == "other" else "", 0)
        if previous == "FORMAT" and token.kind == "word" and depth == 0:
            output_format = token.text
            if keyword == "INSERT":
                break
        if keyword == "INSERT" and word == "VALUES" and depth == 0:
            break
        previous = word if depth == 0 else ""
    return Statement(keyword, output_format)


def check_read_only(sql: bytes, table_functions: AbstractSet[str]) -> None:
    """Raise `NotAllowed` unless the statement only reads this database.

    `table_functions` are the engine's own, lower case. Stricter than need be: a name that reaches outside is refused
    wherever it is called, and OUTFILE wherever it stands, because the engine would write that file itself.
    """
    keyword = read_statement(sql).keyword
    if keyword not in READ_KEYWORDS:
        raise NotAllowed(164, f"Cannot execute {keyword or 'an empty'} query in readonly mode", "READONLY")
    if re.search(rb"(?i)outfile|infile", sql):
        raise NotAllowed(164, "INTO OUTFILE and FROM INFILE are not allowed in readonly mode", "READONLY")
    outside = table_functions - HARMLESS_TABLE_FUNCTIONS
    previous = ""
    for token in _tokens(sql):
        name = _bare(token).lower() if token.kind in ("word", "name") else ""
        # A function can also be named without being called there: `APPLY(file)`, `arrayMap(file, …)`.
        if name in FORBIDDEN_FUNCTIONS or (token.text == "(" and previous in outside):
            raise NotAllowed(
                164, f"Function {name or previous} reaches outside of the database: not allowed here", "READONLY"
            )
        # Blanks and quotes beyond ASCII would be read by the engine in ways that this lexer does not know.
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
        kind = match.lastgroup or ""
        if kind != "blank":
            yield _Token("text" if kind in ("heredoc", "tag") else kind, match[0].decode("utf-8", "replace"))
