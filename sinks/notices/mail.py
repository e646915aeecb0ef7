"""Sends notices by mail."""

from __future__ import annotations

import asyncio
import re
import smtplib
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from aggregators.notices import words
from schemas.errors import InvalidInput, Transient
from schemas.notices import Notice

SCHEMES: Final = ("smtps", "smtp+starttls", "smtp")
PORTS: Final = {"smtps": 465, "smtp+starttls": 587, "smtp": 25}
STEP_TIMEOUT_S: Final = 10.0
TIMEOUT_S: Final = 60.0
THREADS_MAX: Final = 4
# Addresses without comments, quotes and literals: what else the grammar allows, Python's parser reads otherwise or not.
_ADDRESS: Final = re.compile(r"[^\s@.,:;<>()\[\]\\\"]+(\.[^\s@.,:;<>()\[\]\\\"]+)*@[\w-]+(\.[\w-]+)*")


class MailServer(NamedTuple):
    """A mail server and whom the mails are from and to. `to` "": to the account's customer."""

    scheme: str
    host: str
    port: int
    user: str
    password: str
    sender: str
    to: str


def mail_server(url: str) -> MailServer:
    """The server of `smtps://USER:PASSWORD@HOST:PORT?from=ADDRESS&to=ADDRESS`. Raises `InvalidInput`."""
    field = "TIDEMARK_MAIL_URL"
    try:
        parts = urlsplit(url)
        port, options = parts.port, parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise InvalidInput(field, "is no address of a mail server") from error
    if parts.scheme not in SCHEMES or not _is_host(parts.hostname or "") or options.keys() - {"from", "to"}:
        raise InvalidInput(field, "must be smtps://USER:PASSWORD@HOST:PORT?from=ADDRESS, and may have &to=ADDRESS")
    sender, to = options.get("from", [""])[-1], options.get("to", [""])[-1]
    for address in (sender, to):
        if address and not _is_address(address):
            raise InvalidInput(field, "has an address that is none: from and to are such as billing@example.com")
    if not sender:
        raise InvalidInput(field, "must say whom mails are from: ?from=billing@example.com")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return MailServer(parts.scheme, parts.hostname or "", port or PORTS[parts.scheme], user, password, sender, to)


class MailChannel:
    """Sends each notice as a mail of its own, whose Message-ID is the notice's id.

    `address` returns the address of an account's customer, or ""; `page` a link to the account's own page, or "".
    """

    def __init__(
        self,
        server: MailServer,
        address: Callable[[str], Awaitable[str]],
        page: Callable[[str], str] = lambda _account: "",
    ) -> None:
        self._server = server
        self._address = address
        self._page = page
        self._executor = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="mail")

    async def send(self, notice: Notice) -> bool:
        """See `schemas.notices.Channel`."""
        to = self._server.to or await self._address(notice.account)
        if not _is_address(to):
            return False
        try:
            # A server that sends a byte now and then keeps a thread for longer; the mail may go out all the same.
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.get_running_loop().run_in_executor(self._executor, self._send, self._mail(notice, to))
        except TimeoutError as error:
            raise Transient(f"the mail server did not answer in {TIMEOUT_S:g} s") from error
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            # The server repeats the address; the outbox and the logs keep what is said here.
            said = re.sub(re.escape(to), "the recipient", str(error), flags=re.IGNORECASE)
            raise Transient(f"the mail server did not take the mail: {said or type(error).__name__}") from error
        return True

    def _mail(self, notice: Notice, to: str) -> EmailMessage:
        mail = EmailMessage(SMTP)
        subject, text = words(notice, self._page(notice.account))
        mail["From"], mail["To"], mail["Subject"] = self._server.sender, to, subject
        mail["Message-ID"] = f"<{notice.id}@{self._server.sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
        return mail

    def _send(self, mail: EmailMessage) -> None:
        server, timeout_s = self._server, STEP_TIMEOUT_S
        if server.scheme == "smtps":
            context = ssl.create_default_context()
            connection: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=context)
        else:
            connection = smtplib.SMTP(server.host, server.port, timeout=timeout_s)
        with connection:
            if server.scheme == "smtp+starttls":
                connection.starttls(context=ssl.create_default_context())
            if server.user:
                connection.login(server.user, server.password)
            connection.send_message(mail)

    def close(self) -> None:
        """Release the threads without waiting for a server."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _is_host(name: str) -> bool:
    """Whether a connection can be made to a host of this name."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def _is_address(text: str) -> bool:
    return len(text) <= 254 and text.isprintable() and _ADDRESS.fullmatch(text) is not None
