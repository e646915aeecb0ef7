"""The emitter when processes begin, fork and end, and when it is installed alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

SERVER = """
import http.server, json, sys, threading
received = []
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        events = json.loads(self.rfile.read(int(self.headers["content-length"])))
        received.extend(event["id"] for event in events)
        body = json.dumps({"events": [{"index": i, "id": e["id"], "status": "accepted"} for i, e in enumerate(events)]})
        self.send_response(202)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
"""


def run_script(script: str) -> str:
    """Runs a script in a new Python process; returns its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, text=True, capture_output=True, check=True, timeout=90
    )
    return done.stdout


def test_events_pending_at_exit_are_sent() -> None:
    """A script that does not call `close` still delivers its events."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER + "print(url, flush=True); sys.stdin.readline(); print(sorted(received))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip()

    run_script(f"from emitter import Emitter; Emitter({url!r}, 'k', source='s').emit('t', 'acme', id='last')")
    output, _ = server.communicate("stop\n", timeout=90)

    assert output.strip() == "['last']"


def test_a_forked_child_sends_its_own_events_and_not_its_parents() -> None:
    """Pre-forking servers import the application first. A child that resent the queue would only cause duplicates, but
    a child that waited for its parent's thread would lose its own events."""
    output = run_script(
        SERVER
        + """
import os
from emitter import Emitter
emitter = Emitter(url, "k", source="s", flush_interval_s=0.3)
emitter.emit("t", "acme", id="warm-up"); assert emitter.flush()
emitter.emit("t", "acme", id="parent")
child = os.fork()
if child == 0:
    emitter.emit("t", "acme", id="child")
    assert emitter.close(10)
    assert emitter.stats().accepted == 1, emitter.stats()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert emitter.close(10)
assert emitter.stats().accepted == 2, emitter.stats()
print(sorted(received))
"""
    )

    assert output.strip() == "['child', 'parent', 'warm-up']"


def test_the_emitter_imports_nothing_but_the_standard_library() -> None:
    """The emitter is installed alone, into applications of other teams."""
    output = run_script(
        "import sys; import emitter; "
        "print([name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names "
        "and name.split('.')[0] not in ('emitter', '__main__')])"
    )

    assert [name for name in json.loads(output.replace("'", '"')) if not name.startswith("_")] == []


def test_a_child_that_is_forked_while_an_answer_is_read_survives() -> None:
    """A thread that does not exist in the child has locked the answer's buffer."""
    output = run_script("""
import os, socket, threading
from emitter import Emitter
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
half, parent = threading.Event(), os.getpid()
def serve():
    connection, _ = listening.accept()
    connection.recv(1 << 20)
    connection.sendall(b"HTTP/1.1 202 Accepted\\r\\nContent-Length: 1000\\r\\n\\r\\n")
    half.set()
    threading.Event().wait()
threading.Thread(target=serve, daemon=True).start()
emitter = Emitter(f"http://127.0.0.1:{listening.getsockname()[1]}", "k", source="s", flush_interval_s=0.01)
emitter.emit("t", "a", id="1")
half.wait(10)
# Wait until the sending thread reads the rest of the answer and has locked the buffer.
import sys, time
def reads():
    frame = sys._current_frames().get(emitter._thread.ident)
    while frame is not None:
        if frame.f_code.co_name == "readinto":
            return True
        frame = frame.f_back
while not reads():
    time.sleep(0.001)
child = os.fork()
if child == 0:
    print(emitter.stats().pending, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("ended", flush=True)
os._exit(0)
""")

    assert output == "0\nended\n"


def test_a_child_of_multiprocessing_sends_its_last_events() -> None:
    """A forked child ends without Python's exit handlers."""
    output = run_script("""
import json, multiprocessing, os
from emitter import Answer, Emitter
def transport(body, headers):
    events = json.loads(body)
    os.write(1, b"sent %d\\n" % len(events))
    answers = [{"index": at, "id": each["id"], "status": "accepted"} for at, each in enumerate(events)]
    return Answer(202, {}, json.dumps({"events": answers}).encode())
def job():
    Emitter("http://unused", "k", source="s", transport=transport, flush_interval_s=60).emit("t", "a")
process = multiprocessing.get_context("fork").Process(target=job)
process.start()
process.join()
""")

    assert output == "sent 1\n"
