"""A process that has imported everything and forks the roles on demand, so that a killed role is back in no time.

`python -m pipeline.local.nursery` takes one JSON object a line on its input: `{"name", "arguments", "environment",
"log"}` starts a role; it answers `{"started": name, "pid": n}` and, later, `{"ended": name, "pid": n, "code": n}`. It
runs no thread and no event loop of its own, so that forking is safe; it ends, and with it all roles, when its input
does.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Final

READ_BYTES: Final = 65_536


def main() -> None:
    """Import the roles, then serve until the input ends."""
    for role in ("worker", "archive", "router", "sink", "gateway"):
        importlib.import_module(f"pipeline.roles.{role}")
    for driver in ("redis", "clickhouse", "stripe"):
        importlib.import_module(f"sinks.{driver}.writer")
    importlib.import_module("sinks.clickhouse.reader")
    importlib.import_module("sinks.stripe.client")

    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakeup_write)
    names: dict[int, str] = {}
    pending = b""
    _tell(ready=True)
    while True:
        readable, _, _ = select.select([0, wakeup_read], [], [])
        if wakeup_read in readable:
            os.read(wakeup_read, READ_BYTES)
            _reap(names)
        if 0 in readable:
            chunk = os.read(0, READ_BYTES)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                names[_fork(order, wakeup_read, wakeup_write)] = order["name"]


def _tell(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _reap(names: dict[int, str]) -> None:
    while names:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _tell(ended=names.pop(pid), pid=pid, code=os.waitstatus_to_exitcode(status))


def _fork(order: dict[str, Any], *inherited: int) -> int:
    pid = os.fork()
    if pid:
        _tell(started=order["name"], pid=pid)
        return pid
    code = 1
    try:
        _become(order, inherited)
        from pipeline.cli import main as command_line

        sys.argv = ["tidemark", *order["arguments"]]
        command_line()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the log must show it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the nursery registered to run at its own end must not run here.
        os._exit(code)


def _become(order: dict[str, Any], inherited: tuple[int, ...]) -> None:
    """In the child: a session of its own that dies with the nursery, its own output and environment."""
    from pipeline.local.processes import die_with_parent

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    os.setsid()
    die_with_parent()
    log = os.open(Path(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])


if __name__ == "__main__":
    main()
