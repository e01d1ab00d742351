"""Bytes of a URL that the caller allowed: http, https and data, from public addresses only.

A name is resolved once, every address it has must be public, and the connection goes to one of the checked
addresses, so a name that changes its answer between check and use gains nothing. Each redirect is checked
like the first URL. Size, redirects and the time for everything together are capped (`mm.limits.Limits`).
Proxy settings of the environment are not used.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from mm.errors import ImageInputError, MMError, ResourceLimitError
from mm.limits import DEFAULT_LIMITS, Limits

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL_CHARS = 8192  # of an http or https URL
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "mm-upcycle", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
# Public by number, internal by use: a cloud's host agent; and prefixes that carry an IPv4 address inside.
_NOT_PUBLIC = tuple(ipaddress.ip_network(block) for block in ("168.63.129.16/32", "2001::/32", "2002::/16"))
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True)
class _Target:
    """One checked http or https URL."""

    scheme: str
    host: str  # ASCII, lower case, without brackets
    port: int
    path: str  # with the query, percent-encoded
    name: str  # for messages


def is_url(text: str) -> bool:
    """Whether a string is a URL rather than a path: `scheme://…` or `data:…`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", text, re.IGNORECASE) is not None


def public_name(url: str) -> str:
    """A URL as messages show it: without user, password, query, fragment or the content of a data URL."""
    if url[:5].lower() == "data:":
        return "data:…"
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return printable(re.sub(r"^([^/]*//)[^/]*@", r"\1", bare))


def printable(text: str) -> str:
    """A name fit for a message: no control characters, no more than 200 characters."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:200])
    return shown + "…" if len(text) > 200 else shown


def fetch(url: str, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The body behind an http, https or data URL.

    Raises:
        ImageInputError: another scheme, a malformed URL, an address that is not public, or no answer of 200.
        ResourceLimitError: too many bytes or redirects, or too slow.
    """
    if url[:5].lower() == "data:":
        return _data_url(url, limits)
    deadline = time.monotonic() + limits.fetch_timeout_s
    target = _parse(url)
    for _ in range(limits.max_redirects + 1):
        body, location = _get(target, limits, deadline)
        if location is None:
            return body
        target = _parse(urllib.parse.urljoin(_spelled(target), location))
    raise ResourceLimitError(f"{public_name(url)}: more than max_redirects={limits.max_redirects} redirects.")


def _data_url(url: str, limits: Limits) -> bytes:
    """The bytes inside `data:[type][;base64],…`."""
    comma = url.find(",", 0, 1024)
    if comma < 0:
        raise ImageInputError("data:…: expected data:[type][;base64],content; there is no comma.")
    encoded = url[:comma].lower().endswith(";base64")
    room = limits.max_fetch_bytes
    if len(url) - comma - 1 > 3 * room + 4:  # even fully percent-encoded it would be too long
        raise ResourceLimitError(f"data:…: more than max_fetch_bytes={room} bytes.")
    content = urllib.parse.unquote_to_bytes(url[comma + 1 :])
    if encoded:
        if len(content) > 4 * (room // 3 + 1):
            raise ResourceLimitError(f"data:…: more than max_fetch_bytes={room} bytes.")
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as exc:
            raise ImageInputError("data:…: the content is not base64.") from exc
    if len(content) > room:
        raise ResourceLimitError(f"data:…: more than max_fetch_bytes={room} bytes.")
    return content


def _parse(url: str) -> _Target:
    """Split a URL, refusing everything that two parsers might read differently."""
    name = public_name(url)
    if len(url) > _MAX_URL_CHARS:
        raise ImageInputError(f"{name}: a URL of more than {_MAX_URL_CHARS} characters.")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ImageInputError(f"{name}: a URL must not hold spaces, control characters or backslashes.")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise ImageInputError(f"{name}: not a valid URL.") from exc
    if parts.scheme not in _PORTS:
        raise ImageInputError(f"{name}: expected an http, https or data URL.")
    if "@" in parts.netloc:
        raise ImageInputError(f"{name}: a URL must not hold a user name or password.")
    if port == 0 or not _is_host(host):
        raise ImageInputError(f"{name}: expected a host name or a plain IP address, and a port above 0.")
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]|")
    return _Target(parts.scheme, host, port or _PORTS[parts.scheme], path, name)


def _is_host(host: str) -> bool:
    """An IP address in its usual spelling, or a name whose last label could not be read as a number."""
    try:
        ipaddress.ip_address(host)
        return "%" not in host
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        if re.fullmatch(r"\d+|0x[0-9a-f]*", last):  # 2130706433, 0x7f.1, 127.1, 0177.0.0.1
            return False
        return re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", host) is not None and len(host) < 255


def _spelled(target: _Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{target.scheme}://{host}:{target.port}{target.path}"


def _is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet and to one machine."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _PUBLIC_IPV6:
        return False  # among others every IPv4 address in IPv6 clothing
    if any(ip in block for block in _NOT_PUBLIC if block.version == ip.version):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _resolve(target: _Target, deadline: float) -> list[str]:
    """Every address of the host, all of them public. The system's resolver knows no time limit, so it is
    asked from a thread that is left behind when the time is over."""
    answer: list[str] | OSError | UnicodeError = OSError()

    def ask() -> None:
        nonlocal answer
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answer = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        except (OSError, UnicodeError) as exc:
            answer = exc

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise ResourceLimitError(f"{target.name}: its name was not resolved in time (fetch_timeout_s).")
    if isinstance(answer, Exception) or not answer:
        raise ImageInputError(f"{target.name}: its host name cannot be resolved.")
    if not all(map(_is_public, answer)):
        raise ImageInputError(f"{target.name}: its host is not at a public address.")
    return answer


def _get(target: _Target, limits: Limits, deadline: float) -> tuple[bytes, str | None]:
    """One request: the body, or where it redirects to."""
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.host, target.port)
    connection.auto_open = 0  # never dial by name
    try:
        with _dial(target, _resolve(target, deadline), deadline) as sock, _time_limit(sock, deadline):
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.sock = sock
            connection.request("GET", target.path, headers=_HEADERS)
            with connection.getresponse() as response:
                return _answer(response, target, limits, deadline)
    except MMError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as exc:
        if time.monotonic() >= deadline:
            raise _too_slow(target, limits) from exc
        raise ImageInputError(f"{target.name}: the connection failed ({type(exc).__name__}).") from exc


def _dial(target: _Target, addresses: list[str], deadline: float) -> socket.socket:
    """A connection to the first checked address that answers; for https, wrapped for the URL's own host."""
    failure: OSError = OSError()
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            sock = socket.create_connection((address, target.port), timeout=left)
        except OSError as exc:
            failure = exc
            continue
        if target.scheme == "https":
            context = ssl.create_default_context()
            return context.wrap_socket(sock, server_hostname=target.host, do_handshake_on_connect=False)
        return sock
    raise failure


@contextlib.contextmanager
def _time_limit(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Hang up at the deadline: a socket's own timeout begins anew with every byte that arrives."""

    def hang_up() -> None:
        with contextlib.suppress(OSError):  # it may have ended by itself
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would want to talk

    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), hang_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _answer(
    response: http.client.HTTPResponse, target: _Target, limits: Limits, deadline: float
) -> tuple[bytes, str | None]:
    if response.status in _REDIRECTS and (location := response.getheader("Location")):
        return b"", location
    if response.status != 200:
        raise ImageInputError(f"{target.name}: the server answered {response.status}, expected 200.")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ImageInputError(f"{target.name}: the server compressed the answer although it was not asked to.")
    if response.length is not None and response.length > limits.max_fetch_bytes:
        raise ResourceLimitError(f"{target.name}: more than max_fetch_bytes={limits.max_fetch_bytes} bytes.")
    parts: list[bytes] = []
    size = 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > limits.max_fetch_bytes:
            raise ResourceLimitError(f"{target.name}: more than max_fetch_bytes={limits.max_fetch_bytes} bytes.")
    if time.monotonic() >= deadline:
        raise _too_slow(target, limits)
    if response.length:  # read1 ends quietly when the server leaves early
        raise ImageInputError(f"{target.name}: the answer ended {response.length} bytes early.")
    return b"".join(parts), None


def _too_slow(target: _Target, limits: Limits) -> ResourceLimitError:
    return ResourceLimitError(f"{target.name}: not finished within fetch_timeout_s={limits.fetch_timeout_s:g}.")
