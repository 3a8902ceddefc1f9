"""nginx itself, with the gateway's configuration, in front of servers that speak as ours do."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.deploy.tools import ROOT, run
from tests.waiting import wait_until

CONFIGURATION = ROOT / "deploy" / "nginx" / "nginx.conf"
NGINX = "/usr/sbin/nginx"


class Upstream(ThreadingHTTPServer):
    """Streams one event, and the second when `go_on` is set; 503 where it `drains`."""

    daemon_threads = True

    def __init__(self, *, drains: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.drains = drains
        self.go_on = Event()
        self.num_requests = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        self.server.num_requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.drains:
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b"data: 1\n\n")
        self.server.go_on.wait(60)
        self._chunk(b"data: 2\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(*upstreams: Upstream) -> Iterator[None]:
    threads = [Thread(target=upstream.serve_forever) for upstream in upstreams]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for upstream in upstreams:
            upstream.go_on.set()
            upstream.shutdown()
            upstream.server_close()
        for thread in threads:
            thread.join()


@contextmanager
def gone() -> Iterator[str]:
    """An address where nobody answers and nobody refuses: a port whose queue is full."""
    with socket.socket() as listener, ExitStack() as others:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def gateway(folder: Path, *servers: str) -> Iterator[str]:
    """nginx with the real file, but for its port, its process file and where `server` is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = CONFIGURATION.read_text()
    upstream = "upstream servers { " + " ".join(f"server {server};" for server in servers) + " }"
    for old, new in (
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("/tmp/", f"{folder}/"),
        ("http://server:8000", "http://servers"),
        ("    server {\n", f"    {upstream}\n    server {{\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    changed = folder / "nginx.conf"
    changed.write_text(text)
    process = subprocess.Popen([NGINX, "-c", changed, "-g", "daemon off; user root;"])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url))
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/metrics").status_code == 404
    except httpx.ConnectError:
        return False


def test_nginx_takes_the_file() -> None:
    run(NGINX, "-t", "-c", str(CONFIGURATION))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    with serving(server):
        yield server


def test_an_event_arrives_before_the_next_one_is_made(upstream: Upstream, tmp_path: Path) -> None:
    with (
        gateway(tmp_path, upstream.address) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json={}) as reply,
    ):
        events = reply.iter_raw()
        assert next(events) == b"data: 1\n\n"
        upstream.go_on.set()
        assert b"".join(events) == b"data: 2\n\n"


def test_a_server_that_drains_is_passed_over(upstream: Upstream, tmp_path: Path) -> None:
    draining = Upstream(drains=True)
    upstream.go_on.set()
    with serving(draining), gateway(tmp_path, draining.address, upstream.address) as url:
        replies = [httpx.post(f"{url}/v1/chat/completions", json={}) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200] * 4
    assert draining.num_requests > 0


def test_a_server_that_has_gone_is_passed_over(upstream: Upstream, tmp_path: Path) -> None:
    upstream.go_on.set()
    with gone() as address, gateway(tmp_path, address, upstream.address) as url:
        replies = [httpx.post(f"{url}/v1/chat/completions", json={}, timeout=60) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200] * 2


def test_clients_are_told_when_to_come_back_where_no_server_takes_them(tmp_path: Path) -> None:
    first, second = Upstream(drains=True), Upstream(drains=True)
    with serving(first, second), gateway(tmp_path, first.address, second.address) as url:
        reply = httpx.post(f"{url}/v1/chat/completions", json={})
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "7")
    assert (first.num_requests, second.num_requests) == (1, 1)


def test_metrics_stay_inside(upstream: Upstream, tmp_path: Path) -> None:
    with gateway(tmp_path, upstream.address) as url:
        assert httpx.get(f"{url}/metrics").status_code == 404
