"""`make stripe-mock`: Stripe's own mock server judges every kind of request that the product and the scenarios send.

The tests of `SENDERS` run against the simulator and note the kinds of their requests. stripe-mock then gets one request
of each kind, and checks its route, parameters and values against the OpenAPI document of Stripe's that is built in. The
document is older than the pinned SDK and has no API v2; `DIFFERENCES` says which refusals are due to that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from pipeline.local.processes import LocalProcess
from tests.sandbox.stage import VARIABLE as SANDBOX
from tests.services.stripe_requests import VARIABLE, Request, read

ROOT: Final = Path(__file__).parents[1]
VERSION: Final = "v0.203.0"
FOLDER: Final = ROOT / ".tidemark" / "stripe-mock"
SENDERS: Final = ("tests/scenarios", "tests/conformance/test_stripe.py", "tests/unit/stripe_simulator", "tests/sandbox")
# A judge refuses this.
MADE_UP: Final = Request("POST /v1/customers", "/v1/customers", "no_such_parameter=1")
# Where Go's own installer puts it, which is not always on the PATH.
GO_FOLDER: Final = "/usr/local/go/bin"
READY_PREFIX: Final = "Listening for HTTP at address: "
REMEDY: Final = "install Go 1.22 or newer (apt-get install golang-go, or https://go.dev/doc/install)"


class Refusal(NamedTuple):
    """A request and what stripe-mock says about it."""

    request: Request
    status: int
    message: str


class Difference(NamedTuple):
    """Why stripe-mock refuses what Stripe takes: the route's beginning and a part of the message say what is meant.

    `newer` is a part of the request, and `older` is its form in stripe-mock's version: so the rest is judged as well.
    """

    route: str
    message: str
    reason: str
    newer: str = ""
    older: str = ""

    def explains(self, refusal: Refusal) -> bool:
        """Whether the refusal is meant."""
        request, _, message = refusal
        return request.route.startswith(self.route) and self.message in message and self.newer in request.content


# The OpenAPI document of VERSION is that of 2026-08-26.dahlia and has API v1 only.
NO_V2: Final = "stripe-mock has no API v2"
NEWER: Final = "new in endive, and stripe-mock has 2026-08-26.dahlia; right in the SDK's types"
DIFFERENCES: Final = (
    Difference("GET /v2/", "Unrecognized request URL", NO_V2),
    Difference("POST /v2/", "Unrecognized request URL", NO_V2),
    Difference("POST /v1/subscriptions/{subscription}/pause", "Unrecognized request URL", f"route {NEWER}"),
    Difference(
        "POST /v1/subscriptions/{subscription_exposed_id}", "'billing_cycle_anchor' validation failed: value is not",
        f"the anchor as a map is {NEWER}", "billing_cycle_anchor[type]=now", "billing_cycle_anchor=now",
    ),
    Difference(
        "POST /v1/subscriptions/{subscription}/resume", "additional properties are not allowed",
        f"this parameter is {NEWER}", "payment_behavior=resume_on_payment_success", "",
    ),
)  # fmt: skip


def refusals(http: httpx.Client, requests: Iterable[Request]) -> list[Refusal]:
    """Send each request, and return what was not answered with 2xx."""
    return [refusal for request in requests if (refusal := _refusal(http, request))]


def _refusal(http: httpx.Client, request: Request) -> Refusal | None:
    if request.method == "POST":
        kind = "application/json" if request.path.startswith("/v2/") else "application/x-www-form-urlencoded"
        answer = http.post(request.path, content=request.content, headers={"Content-Type": kind})
    else:
        answer = http.request(request.method, f"{request.path}?{request.content}")
    return None if answer.is_success else Refusal(request, answer.status_code, _message(answer))


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def explanation(http: httpx.Client, refusal: Refusal, differences: Iterable[Difference]) -> Difference | None:
    """The difference that explains a refusal, if stripe-mock takes the request in its older form."""
    for difference in differences:
        if difference.explains(refusal):
            request = refusal.request
            older = request._replace(content=request.content.replace(difference.newer, difference.older))
            if not difference.newer or _refusal(http, older) is None:
                return difference
    return None


def judge(
    http: httpx.Client, requests: Sequence[Request], differences: Sequence[Difference] = DIFFERENCES
) -> tuple[list[str], bool]:
    """The lines of the report, and whether every refusal has a reason and every reason a refusal."""
    refused = refusals(http, requests)
    accepted = len(requests) - len(refused)
    routes = len({request.route for request in requests})
    lines = [f"stripe-mock {VERSION} accepts {accepted} of {len(requests)} kinds of request, of {routes} routes"]
    known = dict.fromkeys(differences, 0)
    for refusal in refused:
        if difference := explanation(http, refusal, differences):
            known[difference] += 1
        else:
            request, status, message = refusal
            lines.append(f"REFUSED {status}: {request.method} {request.path} {request.content}\n    {message}")
    lines += [f"known: {count} of {each.route}: {each.reason}" for each, count in known.items() if count]
    lines += [f"NOT REFUSED, take it from the list: {each.route}: {each.reason}" for each, n in known.items() if not n]
    if not refusals(http, [MADE_UP]):
        lines.append(f"stripe-mock accepts {MADE_UP.content!r} too, so it judges nothing")
    return lines, len(refused) == sum(known.values()) and all(known.values()) and len(lines) == 1 + len(known)


def install() -> Path:
    """The program stripe-mock in the pinned version, built once. Raises `SystemExit` if Go is missing or fails."""
    program = FOLDER / VERSION / "stripe-mock"
    if program.exists():
        return program
    go = shutil.which("go") or shutil.which("go", path=GO_FOLDER)
    if go is None:
        raise SystemExit(f"stripe-mock needs Go, and there is no go on the PATH or in {GO_FOLDER}: {REMEDY}")
    print(f"Building stripe-mock {VERSION} into {program.parent} (a minute)", flush=True)
    built = subprocess.run(
        [go, "install", f"github.com/stripe/stripe-mock@{VERSION}"],
        env={**os.environ, "GOBIN": str(program.parent)},
        cwd=ROOT,
        check=False,
    )
    if built.returncode:
        raise SystemExit(f"go install failed: see above; stripe-mock needs the Go module proxy, and you may {REMEDY}")
    return program


@contextlib.contextmanager
def stripe_mock(program: Path) -> Iterator[httpx.Client]:
    """A client of a running stripe-mock, on free ports of 127.0.0.1."""
    command = [str(program), "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0"]
    with LocalProcess("stripe-mock", command, FOLDER / "stripe-mock.log", cwd=FOLDER) as process:
        address = process.wait_line(READY_PREFIX).removeprefix(READY_PREFIX)
        headers = {"Authorization": "Bearer sk_test_tidemark"}
        with httpx.Client(base_url=f"http://{address}", headers=headers, trust_env=False) as http:
            yield http


def note(path: Path) -> None:
    """Run the tests that send, which note their requests in `path`. Raises `SystemExit` if one fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *SENDERS]
    environment = {**os.environ, VARIABLE: str(path)}
    # Here the steps for a sandbox go to the simulator.
    environment.pop(SANDBOX, None)
    ended = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    if ended.returncode:
        raise SystemExit("the tests that send the requests failed: see above")


def main(arguments: Sequence[str] | None = None) -> None:
    """Note, build, replay and report. Exits with 1 if a refusal has no reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.stripe_mock", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=Path, help="a file that an earlier run noted, instead of running the tests")
    path: Path | None = parser.parse_args(arguments).requests
    program = install()
    if path is None:
        path = FOLDER / "requests.jsonl"
        note(path)
    requests = read(path)
    with stripe_mock(program) as http:
        lines, good = judge(http, requests)
    print("\n".join(lines))
    sys.exit(not good)


if __name__ == "__main__":
    main()
