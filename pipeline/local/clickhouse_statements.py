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
    end: int


class Statement(NamedTuple):
    """The first keyword (upper case, empty for none) and the format named at the end, if any.

    Where the statement is an INSERT whose rows follow in that format: `source_at` is the place for a FROM INFILE
    clause, `format_end` the end of the format's name; both are -1 otherwise.
    """

    keyword: str
    named_format: str | None
    source_at: int = -1
    format_end: int = -1

    @property
    def is_insert(self) -> bool:
        """Whether it stores rows and answers with none."""
        return self.keyword == "INSERT"


def read_statement(sql: bytes) -> Statement:
    """Look at one statement. The rows of an INSERT are not looked at.

    Raises `NotAllowed` where a second statement follows, because the engine would run both and mix up their answers,
    and for INTO OUTFILE and FROM INFILE, which are for clients: here they would name files of the server.
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

    `table_functions` are the engine's own, lower case. Stricter than need be: a name that reaches outside is refused
    wherever it stands. The engine's own read-only mode stands behind this check; it alone would let some of them by.
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
            text = match[0].decode("utf-8", "replace")
            yield _Token("text" if kind in ("heredoc", "tag") else kind, text, match.end())
