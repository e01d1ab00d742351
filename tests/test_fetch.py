"""What the fetcher refuses before it connects, whom it dials, and when it gives up."""

from __future__ import annotations

import base64
import http.server
import socket
import threading
import time

import pytest

from mm.errors import ImageInputError, InputError, ResourceLimitError
from mm.limits import Limits
from mm.pictures.fetch import fetch, is_url, public_name

PUBLIC, OTHER_PUBLIC = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
BODY = b"\x89PNG and so on"
QUICK = Limits(fetch_timeout_s=0.6)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path and counts every request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.hits.append((self.headers["Host"], self.path))
        path, _, rest = self.path.lstrip("/").partition("/")
        if path == "to":
            self.head(302, {"Location": server.locations[int(rest)], "Content-Length": "0"})
        elif path == "loop":
            self.head(302, {"Location": "/loop", "Content-Length": "0"})
        elif path == "endless":
            self.head(200, {})
            self.pour(bytes(1 << 16), pause=0)
        elif path == "slow":
            self.head(200, {"Content-Length": "1000"})
            self.pour(b"x", pause=0.05)
        elif path == "slowhead":
            self.pour(b"H", pause=0.05)
        elif path == "declared":
            self.head(200, {"Content-Length": str(10**12)})
        elif path == "short":
            self.head(200, {"Content-Length": "1000"})
            self.wfile.write(b"abc")
        elif path == "chunked":
            self.head(200, {"Transfer-Encoding": "chunked"})
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        elif path == "gzip":
            self.head(200, {"Content-Encoding": "gzip", "Content-Length": "3"})
            self.wfile.write(b"abc")
        elif path == "missing":
            self.head(404, {"Content-Length": "0"})
        else:
            self.head(200, {"Content-Length": str(len(BODY))})
            self.wfile.write(BODY)
        self.close_connection = True

    def head(self, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def pour(self, part, pause):
        try:
            while not self.server.ended.wait(pause):
                self.wfile.write(part)
        except OSError:
            return

    def log_message(self, *_):
        return


@pytest.fixture
def net(monkeypatch):
    """A loopback server with a hit list, behind a made-up resolver and public addresses that lead to it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hits, server.dialled, server.asked, server.locations = [], [], [], []
    server.ended = threading.Event()
    server.names = {"public.example": [[PUBLIC]]}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def getaddrinfo(host, port, **_):
        server.asked.append(host)
        if host not in server.names and host.strip("0123456789.:abcdef"):
            raise socket.gaierror(-2, "unknown")
        answers = server.names.get(host, [[host]])
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def create_connection(address, timeout):
        server.dialled.append(address)
        if address[0] == "8.8.4.4":
            raise ConnectionRefusedError
        sock = socket.socket()
        sock.settimeout(timeout)
        sock.connect(server.server_address)
        return sock

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def refused(url, kind=InputError, limits=QUICK):
    with pytest.raises(kind) as caught:
        fetch(url, limits=limits)
    message = str(caught.value)
    assert "127.0.0.1:" not in message and "secret" not in message
    return message


def test_a_public_page_is_fetched_from_the_checked_address(net):
    assert fetch("http://public.example/a%20b.png?x=1&y=é#part", limits=QUICK) == BODY
    assert net.hits == [("public.example", "/a%20b.png?x=1&y=%C3%A9")]
    assert net.dialled == [(PUBLIC, 80)]
    assert net.asked == ["public.example"]
    assert fetch("HTTP://Public.Example:8080", limits=QUICK) == BODY
    assert net.hits[-1] == ("public.example:8080", "/")
    assert fetch(f"http://[{OTHER_PUBLIC}]/", limits=QUICK) == BODY
    assert net.dialled[-1] == (OTHER_PUBLIC, 80)
    assert fetch("http://public.example/chunked", limits=QUICK) == b"abcde"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.9.9.9/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:1::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[fc00::1]/",
        "http://[ff02::1]/",
    ],
)
def test_addresses_that_are_not_public_are_refused_before_connecting(net, url):
    refused(url, ImageInputError)
    assert (net.hits, net.dialled) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://8.8.8.8.0x/",
        "http://134744072/",
        "http://ok\\@evil/",
        "http://ok@127.0.0.1/",
        "http://user:secret@public.example/",
        "http://public.example\t/",
        "http://public.example/a b",
        "http://public.example/\r\nHost: x",
        "http://１２７.０.０.１/",
        "http://ⓔxample.com/",
        "http://public.example:0/",
        "http://public.example:99999/",
        "http://public.example:x/",
        "http://[::1/",
        "http:///path",
        "http://%31/",
        "http://a..b/",
        "http://" + "a" * 64 + ".com/",
        "http://public.example/" + "a" * 9000,
        "file:///etc/passwd",
        "ftp://public.example/",
        "gopher://public.example/",
        "javascript:alert(1)",
        "//public.example/",
        "",
    ],
)
def test_urls_that_could_be_read_two_ways_are_not_even_resolved(net, url):
    refused(url, ImageInputError)
    assert (net.asked, net.dialled, net.hits) == ([], [], [])


def test_names_that_lead_inside_are_refused_before_connecting(net):
    net.names |= {"inside.example": [["10.0.0.1"]], "mixed.example": [[PUBLIC, "127.0.0.1"]]}
    for name in ("inside.example", "mixed.example"):
        assert "not at a public address" in refused(f"http://{name}/", ImageInputError)
    assert "cannot be resolved" in refused("http://unknown.example/", ImageInputError)
    assert (net.hits, net.dialled) == ([], [])


def test_a_name_is_resolved_once_so_a_second_answer_gains_nothing(net):
    net.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch("http://rebinding.example/", limits=QUICK) == BODY
    assert (net.asked, net.dialled) == (["rebinding.example"], [(PUBLIC, 80)])
    refused("http://rebinding.example/", ImageInputError)
    assert len(net.hits) == 1


def test_the_next_checked_address_is_tried_when_one_does_not_answer(net):
    net.names["two.example"] = [["8.8.4.4", PUBLIC]]
    assert fetch("http://two.example/", limits=QUICK) == BODY
    net.names["down.example"] = [["8.8.4.4"]]
    assert "connection failed (ConnectionRefusedError)" in refused("http://down.example/", ImageInputError)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://inside.example/",
        "//127.0.0.1/",
        "http://2130706433/",
        "http://ok\\@evil/",
        "file:///etc/passwd",
        "data:,hidden",
        "http://user:secret@public.example/",
    ],
)
def test_every_redirect_is_checked_like_the_first_url(net, location):
    net.names["inside.example"] = [["192.168.0.1"]]
    net.locations.append(location)
    refused("http://public.example/to/0", ImageInputError)
    assert net.hits == [("public.example", "/to/0")]
    assert net.dialled == [(PUBLIC, 80)]


def test_redirects_are_followed_up_to_the_limit(net):
    net.locations += ["/to/1", "http://public.example:81/end"]
    assert fetch("http://public.example/to/0", limits=QUICK) == BODY
    assert [path for _, path in net.hits] == ["/to/0", "/to/1", "/end"]
    assert net.dialled[-1] == (PUBLIC, 81)
    net.hits.clear()
    message = refused("http://public.example/loop", ResourceLimitError, Limits(max_redirects=3, fetch_timeout_s=5))
    assert "max_redirects=3" in message
    assert len(net.hits) == 4


def test_too_many_bytes_are_refused(net):
    small = Limits(max_fetch_bytes=100_000, fetch_timeout_s=5)
    assert "max_fetch_bytes=100000" in refused("http://public.example/endless", ResourceLimitError, small)
    assert "max_fetch_bytes=100000" in refused("http://public.example/declared", ResourceLimitError, small)
    assert fetch("http://public.example/", limits=Limits(max_fetch_bytes=len(BODY))) == BODY
    refused("http://public.example/", ResourceLimitError, Limits(max_fetch_bytes=len(BODY) - 1))


@pytest.mark.parametrize("path", ["slow", "slowhead"])
def test_a_server_that_trickles_is_left_at_the_deadline(net, path):
    start = time.monotonic()
    assert "fetch_timeout_s=0.6" in refused(f"http://public.example/{path}", ResourceLimitError)
    assert 0.5 < time.monotonic() - start < 30  # it ends; how soon is for the machine to say


def test_a_resolver_that_hangs_is_left_at_the_deadline(net, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: net.ended.wait(10) and [])
    start = time.monotonic()
    assert "not resolved in time" in refused("http://public.example/", ResourceLimitError)
    assert time.monotonic() - start < 30  # it ends; how soon is for the machine to say


def test_answers_that_are_no_whole_body_are_refused(net):
    assert "answered 404" in refused("http://public.example/missing", ImageInputError)
    assert "early" in refused("http://public.example/short", ImageInputError)
    assert "compressed" in refused("http://public.example/gzip", ImageInputError)


def test_https_greets_the_checked_address_with_the_urls_own_host(net, monkeypatch):
    """The greeting of TLS names its host in clear; what follows is not a TLS server, so the fetch fails."""
    ours, theirs = socket.socketpair()
    greeting = []

    def create_connection(address, timeout):
        net.dialled.append(address)
        ours.settimeout(timeout)
        return ours

    def listen():
        greeting.append(theirs.recv(4096))
        theirs.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n")

    thread = threading.Thread(target=listen)
    thread.start()
    monkeypatch.setattr(socket, "create_connection", create_connection)
    with theirs:
        assert "SSLError" in refused("https://public.example/", ImageInputError)
        thread.join()
    assert net.dialled == [(PUBLIC, 443)]
    assert b"public.example" in greeting[0]


def test_an_https_server_that_says_nothing_is_left_at_the_deadline(net, monkeypatch):
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
    start = time.monotonic()
    with theirs:
        assert "fetch_timeout_s" in refused("https://public.example/", ResourceLimitError)
    assert time.monotonic() - start < 30  # it ends; how soon is for the machine to say


# Data URLs.


def test_data_urls_are_decoded(net):
    assert fetch("data:image/png;base64," + base64.b64encode(BODY).decode()) == BODY
    assert fetch("DATA:text/plain,a%20b") == b"a b"
    assert fetch("data:,") == b""
    assert net.asked == []


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:", "data:;base64,@@@", "data:;base64,abc"])
def test_data_urls_that_are_malformed_are_refused(url):
    refused(url, ImageInputError)


def test_data_urls_are_capped_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    small = Limits(max_fetch_bytes=300)
    assert fetch("data:," + "x" * 300, limits=small) == b"x" * 300
    assert fetch("data:;base64," + base64.b64encode(bytes(300)).decode(), limits=small) == bytes(300)
    for content in (",", ";base64,"):
        refused(f"data:{content}" + "A" * 404, ResourceLimitError, small)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded before it was measured"))
    refused("data:;base64," + "A" * 200_000_000, ResourceLimitError, Limits())


def test_urls_are_told_from_paths():
    assert all(map(is_url, ("http://a", "HTTPS://a", "file:///a", "data:,x", "s3://bucket/key")))
    assert not any(map(is_url, ("a.png", "C:\\a.png", "C:/a.png", "a/b:c.png", "./data:x", "//host/share", "")))


def test_the_name_of_a_url_keeps_no_secret():
    assert public_name("https://me:secret@host/a.png?token=secret#x") == "https://host/a.png"
    assert public_name("http://host/a@b.png") == "http://host/a@b.png"
    assert public_name("data:image/png;base64,secret") == "data:…"
    assert len(public_name("http://host/" + "a" * 1000)) < 210
