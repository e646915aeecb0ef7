"""The channels: what a receiver gets, and what counts as taken."""

from __future__ import annotations

import asyncio
import base64
import email
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email import policy
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from aggregators.notices import secret_bytes, signature, stripe_notice
from pipeline.http.watched_file import WatchedFile
from pipeline.local.processes import free_port
from pipeline.roles.notifier import load_keys, open_channels, page_of
from pipeline.settings import Settings, load_settings
from portal.tokens import account_of
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from schemas.notices import ChannelName, Notice, NoticeKind, NoticeOutbox, StripeFact
from sinks.notices import webhook
from sinks.notices.file import FileChannel
from sinks.notices.mail import MailChannel, MailServer, mail_server
from sinks.notices.webhook import WebhookChannel
from sinks.sql.fake import FakeSideTables
from tests.integration.deployment import until
from tests.services.postgres import last_link_pays
from tests.worlds.clock import ManualClock
from tests.worlds.mirrored import NOW_MS

PAGE = (Path(__file__).parents[3] / "docs" / "notices.md").read_text()
# The example of the specification, and its signature.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"y" * 24).decode()
NOW_S = 1_614_265_330
BODY = json.dumps({"data": {"used": "812", "of": "1000", "unit": "tokens", "period_end": "2026-12-01T00:00:00Z"}})
NOTICE = Notice("ntc_1", NoticeKind.LIMIT_WARNING, "acme", "api_calls", 0, 10, 80, BODY, 5)


def test_the_signature_is_that_of_the_specifications_example() -> None:
    keys = [secret_bytes(SECRET)]
    found = signature("msg_p5jXN8AQM9LWM0D4loKWxJek", NOW_S, b'{"test": 2432232314}', keys)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_?", "whsec_" + "A" * 20])
def test_a_text_that_is_no_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"begins|bytes|base64"):
        secret_bytes(text)


class Request:
    """What a receiver got."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.line = lines[0]
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self.body = body


@asynccontextmanager
async def receiving(answer: bytes | None) -> AsyncIterator[tuple[str, list[Request]]]:
    """A receiver that gives each request the same answer, or with None takes it and never answers."""
    requests: list[Request] = []
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request = Request(head.strip(), b"")
        request.body = await reader.readexactly(int(request.headers["content-length"]))
        requests.append(request)
        if answer is None:
            await ended.wait()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", requests
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


def status(code: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {code} X\r\ncontent-length: 0\r\nconnection: close\r\n{more}\r\n".encode()


def keys(*secrets: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(secret_bytes(secret) for secret in secrets)


@pytest.mark.parametrize("code", [200, 202, 204])
async def test_a_webhook_is_signed_by_every_secret(code: int) -> None:
    async with (
        receiving(status(code)) as (url, requests),
        WebhookChannel(url, keys(SECRET, OTHER), lambda: NOW_S) as channel,
    ):
        assert await channel.send(NOTICE)
    (request,) = requests
    assert (request.line, request.body) == ("POST /hook HTTP/1.1", BODY.encode())
    assert request.headers["content-type"] == "application/json"
    names = ("webhook-id", "webhook-timestamp")
    assert [request.headers[name] for name in names] == ["ntc_1", str(NOW_S)]
    signed = b"ntc_1.1614265330." + request.body
    expected = [
        "v1," + base64.b64encode(hmac.digest(base64.b64decode(each[6:]), signed, sha256)).decode()
        for each in (SECRET, OTHER)
    ]
    assert request.headers["webhook-signature"].split(" ") == expected


@pytest.mark.parametrize("code", [300, 302, 400, 401, 404, 410, 429, 500, 503])
async def test_any_other_answer_is_a_failure_and_no_redirect_is_followed(code: int) -> None:
    answer = status(code, "location: /elsewhere\r\n")
    async with receiving(answer) as (url, requests), WebhookChannel(url, keys(SECRET), lambda: NOW_S) as channel:
        with pytest.raises(Transient, match=f"answered {code}"):
            await channel.send(NOTICE)
        assert len(requests) == 1


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000])
async def test_an_answer_that_is_none_is_a_failure(answer: bytes) -> None:
    async with receiving(answer) as (url, _), WebhookChannel(url, keys(SECRET), lambda: NOW_S) as channel:
        with pytest.raises(Transient):
            await channel.send(NOTICE)


async def test_the_receiver_of_the_documentation_takes_what_is_genuine() -> None:
    """The page's program runs unchanged; it verifies with nothing of ours."""
    program = PAGE.partition("<!-- receiver -->\n```python\n")[2].partition("```")[0]
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "NOTICES_SECRET": SECRET}
    receiver = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert receiver.stdout is not None
    try:
        url, now_s = f"http://127.0.0.1:{port}/", int(time.time())
        genuine = NOTICE._replace(body='{"data": {"account": "acme"}}')
        async with WebhookChannel(url, keys(OTHER, SECRET), lambda: now_s) as channel:
            await until(lambda: _taken(channel, genuine), "the receiver listens")
            assert await receiver.stdout.readline() == b"ntc_1 acme\n"
        for secret, at_s in ((OTHER, now_s), (SECRET, now_s - 3_600)):
            async with WebhookChannel(url, keys(secret), partial(int, at_s)) as channel:
                with pytest.raises(Transient, match="answered 400"):
                    await channel.send(genuine)
    finally:
        receiver.kill()
        await receiver.communicate()


async def _taken(channel: WebhookChannel, notice: Notice) -> bool:
    try:
        return await channel.send(notice)
    except Transient:
        return False


async def test_a_receiver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 1)
    async with receiving(None) as (url, requests), WebhookChannel(url, keys(SECRET), lambda: NOW_S) as channel:

        async def taken() -> bool:
            return len(requests) == 1

        with pytest.raises(Transient, match="did not answer"):
            await channel.send(NOTICE)
        # The time may be over before the receiver, in the same loop, has read what was sent.
        await until(taken, "the receiver has the request")


async def test_a_receiver_that_is_not_there_and_a_missing_secret_are_failures() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        async with WebhookChannel(url, keys(SECRET), lambda: NOW_S) as channel:
            with pytest.raises(Transient, match="cannot be called"):
                await channel.send(NOTICE)
        async with WebhookChannel(url, keys(), lambda: NOW_S) as channel:
            with pytest.raises(Transient, match="has no secret"):
                await channel.send(NOTICE)


def test_a_secret_is_rotated_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text(f"{SECRET}  # the old one\n{OTHER}\n")
    watched = WatchedFile("TIDEMARK_NOTICES_WEBHOOK_SECRETS", path, load_keys)
    assert len(watched.content()) == 2
    path.write_text(f"{OTHER}\n")
    assert watched.content() == (b"y" * 24,)
    path.write_text("whsec_short\n")
    assert watched.content() == (b"y" * 24,)
    assert "24 bytes" in watched.problem


async def test_a_file_has_one_line_for_each_notice_and_is_replaced_when_full(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    channel = FileChannel(path, bytes_max=len(BODY) * 3)
    await asyncio.gather(*(channel.send(NOTICE) for _ in range(2)))
    assert path.read_text() == f"{BODY}\n" * 2
    assert path.stat().st_mode & 0o777 == 0o600
    await channel.send(NOTICE)
    assert (path.exists(), (tmp_path / "notices.jsonl.1").read_text()) == (False, f"{BODY}\n" * 3)


@pytest.mark.parametrize("host", ["xn--.example", "\u0378.example", "a" * 70 + ".example", "a..example"])
async def test_a_host_that_cannot_exist_is_a_failure_of_the_receiver(host: str) -> None:
    """A name may pass the check of the settings; it must not end the role."""
    async with WebhookChannel(f"http://{host}/", keys(SECRET), lambda: NOW_S) as channel:
        with pytest.raises(Transient, match="the webhook cannot be called"):
            await channel.send(NOTICE)


async def test_a_file_that_another_writer_renamed_is_not_renamed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notices.jsonl"
    channel = FileChannel(path, bytes_max=len(BODY))

    def synced(_: int) -> None:
        # The first writer waits for the disk. Meanwhile a second one fills the file, and a third one begins the next.
        monkeypatch.undo()
        for other in (NOTICE, NOTICE._replace(body="{}")):
            asyncio.run(FileChannel(path, bytes_max=len(BODY)).send(other))

    monkeypatch.setattr("sinks.notices.file.os.fsync", synced)
    await channel.send(NOTICE)
    assert (path.read_text(), (tmp_path / "notices.jsonl.1").read_text()) == ("{}\n", f"{BODY}\n" * 2)


async def test_a_file_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Transient, match="cannot be written: Is a directory"):
        await FileChannel(tmp_path).send(NOTICE)


class MailReceiver(threading.Thread):
    """A mail server that keeps one mail, or refuses its recipient."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(daemon=True)
        self._refuses = refuses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lines: list[str] = []
        self.mail = b""

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with self._listener, connection, connection.makefile("rwb") as stream:

            def say(text: str) -> None:
                stream.write(f"{text}\r\n".encode())
                stream.flush()

            say("220 ready")
            while line := stream.readline():
                self.lines.append(line.decode().strip())
                verb = self.lines[-1].upper()
                if verb == "DATA":
                    say("354 go on")
                    while (part := stream.readline()) != b".\r\n":
                        self.mail += part
                    say("250 taken")
                elif verb.startswith("RCPT") and self._refuses:
                    say(f"550 nobody here: {self.lines[-1]}")
                elif verb == "QUIT":
                    say("221 bye")
                    return
                else:
                    say("250 fine")


@pytest.fixture
def mail_receiver() -> Iterator[MailReceiver]:
    receiver = MailReceiver()
    receiver.start()
    yield receiver
    receiver.join(10)


def mail_channel(port: int, address: str = "", to: str = "") -> MailChannel:
    async def found(_account: str) -> str:
        return address

    return MailChannel(MailServer("smtp", "127.0.0.1", port, "", "", "billing@example.com", to), found)


@pytest.mark.parametrize(("address", "to"), [("ann@example.org", ""), ("ann@example.org", "ops@example.org")])
async def test_a_mail_says_what_happened_under_the_notices_id(
    mail_receiver: MailReceiver, address: str, to: str
) -> None:
    channel = mail_channel(mail_receiver.port, address, to)
    assert await channel.send(NOTICE._replace(account="ac\r\nBcc: all@example.com"))
    channel.close()
    mail: Any = email.message_from_bytes(mail_receiver.mail, policy=policy.default)

    assert (mail["From"], mail["To"], mail["Bcc"]) == ("billing@example.com", to or address, None)
    assert mail["Message-ID"] == "<ntc_1@example.com>"
    assert mail["Subject"] == "ac??Bcc: all@example.com has used 80 % of its limit: api_calls"
    assert "812 of 1000 tokens (api_calls)" in mail.get_content()


async def test_a_mail_about_a_payment_links_to_the_accounts_page(mail_receiver: MailReceiver, tmp_path: Path) -> None:
    """The link opens the page of that account, and of no other."""
    (tmp_path / "secrets").write_text("s" * 32)
    settings = Settings(page_url="https://app.example.com", page_secrets=tmp_path / "secrets")

    async def found(_account: str) -> str:
        return "ann@example.org"

    server = MailServer("smtp", "127.0.0.1", mail_receiver.port, "", "", "billing@example.com", "")
    channel = MailChannel(server, found, page_of(settings, ManualClock(NOW_MS)))
    fact = StripeFact(NoticeKind.PAYMENT_FAILED, "acme", "in_1", NOW_MS, 0, 1, "usd", 2, "https://pay")
    made = stripe_notice("log", fact, NOW_MS)
    assert made is not None
    assert await channel.send(made)
    channel.close()
    text = email.message_from_bytes(mail_receiver.mail, policy=policy.default).get_content()

    (token,) = re.findall(r"https://app\.example\.com/page/(\S+)/", text)
    assert account_of(unquote(token), ["s" * 32], NOW_MS + 29 * DAY_MS) == "acme"
    assert "https://pay" not in text


@pytest.mark.parametrize("has", ["page_url", "page_secrets"])
def test_without_both_settings_nobody_is_sent_to_a_page(tmp_path: Path, has: str) -> None:
    (tmp_path / "secrets").write_text("s" * 32)
    value: Any = {"page_url": "https://app.example.com", "page_secrets": tmp_path / "secrets"}[has]
    assert page_of(Settings(**{has: value}), ManualClock(NOW_MS))("acme") == ""


# Python's parser of addresses ends with an AttributeError at the last two.
UNFIT = ["", "nobody", "a@b\r\nRCPT TO:<c@d>", "a@b, c@d", "a@b@c", "x" * 300 + "@example.com", "t'.:{@`", "f|@[\\-\\é"]


@pytest.mark.parametrize("address", UNFIT)
async def test_without_an_address_nobody_is_written_to(address: str) -> None:
    channel = mail_channel(9, address)
    assert not await channel.send(NOTICE)
    channel.close()


async def test_a_recipient_who_is_refused_and_a_server_that_is_not_there_are_failures() -> None:
    refusing = MailReceiver(refuses=True)
    refusing.start()
    for port in (refusing.port, refusing.port):
        channel = mail_channel(port, "ann@example.org")
        with pytest.raises(Transient, match="did not take the mail") as caught:
            await channel.send(NOTICE)
        # The outbox and the logs keep no address of a customer.
        assert "ann@" not in str(caught.value).lower()
        channel.close()
        refusing.join(10)


def test_the_address_of_a_mail_server() -> None:
    assert mail_server("smtps://us%40er:p%3Aw@mail.example.com?from=b@example.com&to=o@example.com") == MailServer(
        "smtps", "mail.example.com", 465, "us@er", "p:w", "b@example.com", "o@example.com"
    )
    assert mail_server("smtp+starttls://mail.example.com:2525?from=b@example.com").port == 2525


@pytest.mark.parametrize(
    "url",
    [
        "http://x?from=a@b", "smtp://?from=a@b", "smtp://x", "smtp://x?from=a", "smtp://x?from=a@b&to=c",
        "smtp://x?from=a@b&cc=c@d", "smtp://x:99999?from=a@b", "smtp://[x?from=a@b",
    ],
)  # fmt: skip
def test_an_address_of_no_mail_server_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="TIDEMARK_MAIL_URL"):
        mail_server(url)


# Names that no resolver is asked for, each refused by another part of Python or of the client.
NO_HOSTS = [
    "xn--.example",
    "\u0378.example",
    "xn--zz99999.example",
    "a" * 70 + ".example",
    "a..example",
    "a\u2024b.c d",
]
CHANNELS: dict[str, tuple[dict[str, str], list[ChannelName]]] = {
    "nothing": ({}, []),
    "a file": ({"mail_url": "file:///tmp/notices%20here"}, [ChannelName.FILE]),
    "mail and webhook": (
        {"mail_url": "smtps://x?from=a@b", "notices_webhook_url": "https://x/", "notices_webhook_secrets": "secrets"},
        [ChannelName.MAIL, ChannelName.WEBHOOK],
    ),
    "the finance system": (
        {"journal_webhook_url": "https://x/", "notices_webhook_secrets": "secrets"},
        [ChannelName.FINANCE],
    ),
}


@pytest.mark.parametrize(("given", "names"), CHANNELS.values(), ids=CHANNELS)
async def test_the_settings_say_which_channels_there_are(given: dict[str, str], names: list[ChannelName]) -> None:
    outbox: NoticeOutbox = FakeSideTables(last_link_pays).notices
    async with open_channels(load_settings(**given), outbox, ManualClock(0)) as channels:
        assert list(channels) == names


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"mail_url": "pop3://x"}, "TIDEMARK_MAIL_URL"),
        ({"mail_url": "file://relative"}, "TIDEMARK_MAIL_URL"),
        ({"mail_url": "smtp://x"}, "TIDEMARK_MAIL_URL"),
        ({"notices_webhook_url": "ftp://x"}, "TIDEMARK_NOTICES_WEBHOOK_URL"),
        *(({"notices_webhook_url": f"https://{host}/"}, "TIDEMARK_NOTICES_WEBHOOK_URL") for host in NO_HOSTS),
        *(({"stripe_api_base": f"http://{host}"}, "TIDEMARK_STRIPE_API_BASE") for host in NO_HOSTS),
        *(({"mail_url": f"smtp://{host}?from=a@b"}, "TIDEMARK_MAIL_URL") for host in ("a..b", "a" * 70)),
        ({"notices_webhook_url": "https://x/"}, "TIDEMARK_NOTICES_WEBHOOK_SECRETS"),
        ({"journal_webhook_url": "https://x/"}, "TIDEMARK_NOTICES_WEBHOOK_SECRETS"),
        ({"journal_webhook_url": "ftp://x"}, "TIDEMARK_JOURNAL_WEBHOOK_URL"),
    ],
)
async def test_a_wrong_setting_is_named(given: dict[str, str], setting: str) -> None:
    outbox: NoticeOutbox = FakeSideTables(last_link_pays).notices
    with pytest.raises(InvalidInput, match=setting):
        await open_channels(load_settings(**given), outbox, ManualClock(0)).__aenter__()
