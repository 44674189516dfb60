"""Post one request to a server: its reply, or in one line why there is none. Never shows the key."""

import base64
import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from threading import Lock, Timer
from typing import Any

from sft.errors import as_printable

MAX_REPLY_BYTES = 16_000_000  # an answer of 512 tokens is some kB; some servers send every token's log-probabilities
MAX_TOLD_BYTES, MAX_TOLD_CHARS = 10_000, 500
LEAST_KEY_CHARS = 8
_COME_AGAIN = (408, 425, 429)


class FailedTry(Exception):
    """No answer, but another try may bring one; `wait_s` is how long the server asks to wait, 0 where it does not."""

    def __init__(self, problem: str, wait_s: float = 0.0):
        super().__init__(problem)
        self.wait_s = wait_s


class RefusedRequest(Exception):
    """The server's word that it will not answer this, with the HTTP `status`."""

    def __init__(self, problem: str, status: int):
        super().__init__(problem)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key and the screenshots go to the server that was named, and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _Deadline:
    """Ends the connections of one request when its time is over, at whatever byte its reply is.

    The timeout of a socket begins anew with each byte: a server that sends one a minute would never be given up.
    """

    def __init__(self, seconds: float):
        self.is_over = False
        self._lock, self._sockets = Lock(), list[socket.socket]()
        self._timer = Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()

    def watch(self, connection: socket.socket) -> None:
        """Take up a connection before TLS, whose handshake may be as slow as the rest."""
        with self._lock:
            self._sockets.append(connection.dup())
        if self.is_over:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        with self._lock, suppress(OSError):  # one that is closed already
            for each in self._sockets:
                each.shutdown(socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    deadline: _Deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class _TLSConnection(http.client.HTTPSConnection, _Connection):
    """`HTTPSConnection`, which asks `_Connection` for what it then encrypts."""


class _Opener(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https with the request's deadline."""

    def http_open(self, req: Any) -> http.client.HTTPResponse:
        return self.do_open(partial(_build, _Connection, req.deadline), req)

    def https_open(self, req: Any) -> http.client.HTTPResponse:
        return self.do_open(partial(_build, _TLSConnection, req.deadline), req)


def _build(kind: type[_Connection], deadline: _Deadline, *args: Any, **kwargs: Any) -> _Connection:
    connection = kind(*args, **kwargs)
    connection.deadline = deadline
    return connection


_OPENER = urllib.request.build_opener(_NoRedirect, _Opener)


def post_json(url: str, body: Any, key: str, timeout_s: float) -> Any:
    """Post JSON and return the JSON of the reply; `key` goes into the header and into no message, "" is none.

    A reply is waited for and read for at most `timeout_s` seconds and `MAX_REPLY_BYTES`. None is decompressed.

    Raises:
        FailedTry: no whole reply, one that is no JSON, or a status that means: later.
        RefusedRequest: any other status than 200 to 299, redirects included.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request: Any = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with _Deadline(timeout_s) as deadline:
        request.deadline = deadline
        try:
            with _OPENER.open(request, timeout=timeout_s) as reply:
                content, problem = _read(reply, MAX_REPLY_BYTES, deadline)
        except urllib.error.HTTPError as error:
            raise _explain_status(error, key, deadline) from error
        except (http.client.HTTPException, OSError) as error:
            raise FailedTry(_explain(TimeoutError() if deadline.is_over else error, key, timeout_s)) from error
    if problem:
        raise FailedTry(problem)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        coding = reply.headers.get("Content-Encoding")
        told = (
            f"one in Content-Encoding {coding[:20]!r}, which was not asked for" if coding else _excerpt(content, key)
        )
        raise FailedTry(f"a reply that is no JSON: {told or 'an empty one'}") from error


def _read(reply: Any, limit: int, deadline: _Deadline) -> tuple[bytes, str]:
    """Read a reply's body; return what came of it and what is wrong with it: too long, too slow, cut, or nothing."""
    content = bytearray()
    try:
        while chunk := reply.read1(65_536):
            content += chunk
            if len(content) > limit:
                return bytes(content), f"a reply of more than {limit} bytes"
    except (http.client.HTTPException, OSError):
        if not deadline.is_over:
            raise
    if deadline.is_over:
        return bytes(content), f"a reply that was not whole in time, after {len(content)} bytes"
    cut = f"a reply that breaks off after {len(content)} bytes, {reply.length} before its end" if reply.length else ""
    return bytes(content), cut


def _explain_status(error: urllib.error.HTTPError, key: str, deadline: _Deadline) -> FailedTry | RefusedRequest:
    """Return what a status other than 200 to 299 means, with the server's own words."""
    try:
        told = _excerpt(_read(error, MAX_TOLD_BYTES, deadline)[0], key)
    except (http.client.HTTPException, OSError):
        told = "(the rest of the reply is missing)"
    problem = f"HTTP {error.code}: {told}"
    if 300 <= error.code < 400:
        place = quote_reply(str(error.headers.get("Location", "")), key)
        return RefusedRequest(f"{problem.rstrip(': ')}: a redirect to {place!r}, which is not followed", error.code)
    if error.code in _COME_AGAIN or error.code >= 500:
        return FailedTry(problem, read_wait(error.headers))
    return RefusedRequest(problem, error.code)


def read_wait(headers: Message) -> float:
    """Return the seconds to wait that `Retry-After` names, as a number or a date; 0 without one that can be read."""
    value = str(headers.get("Retry-After", "")).strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def hide_user(url: str) -> str:
    """Return a server's address without the user and password, the query and the fragment that it may hold.

    A password may hold the marks that end a host: then what precedes an "@" is no host.
    """
    scheme, mark, rest = url.partition("//") if "//" in url else ("", "", url)
    if "@" in rest and not re.match(r"(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d+)?(?:[/?#]|$)", rest):
        rest = rest.rpartition("@")[2]
    return scheme + mark + re.split(r"[?#]", rest)[0]


def hide_key(text: str, key: str) -> str:
    """Return a server's words without the key, which it may repeat: they go to steps.jsonl and the report.

    The key is found as it is, in capitals or small letters, broken by white space, with any of its characters written
    as in an address, in JSON or in HTML, in hex, and in base64. A key shorter than `LEAST_KEY_CHARS` ("EMPTY") is no
    secret, and may be a word of an answer.
    """
    return _find_key(key).sub("[OPENAI_API_KEY]", text) if len(key) >= LEAST_KEY_CHARS else text


@lru_cache(maxsize=8)
def _find_key(key: str) -> re.Pattern[str]:
    gap = r"(?:\\[nrt]|[\s\u00ad\u200b-\u200d\u2060\ufeff]){0,40}"
    spelt = gap.join(rf"(?:{'|'.join(_spell(character))})" for character in key)
    hexed = r"[\s:]?".join(f"{ord(character):02x}" for character in key)
    in_base64 = set()
    for n_before in range(3):  # what stands around the key, such as "Bearer ", shares a character with it at each end
        encoded = base64.b64encode(b"\0" * n_before + key.encode() + b"\0\0").decode()
        first, last = -(-8 * n_before // 6), 8 * (n_before + len(key)) // 6
        in_base64.add(encoded[first:last])
    in_base64 |= {each.replace("+", "-").replace("/", "_") for each in in_base64}
    coded = "|".join(map(re.escape, sorted(in_base64, key=len, reverse=True)))
    around = r"[\w+/-]{0,2}"
    return re.compile(rf"(?i:{spelt}|{hexed})|{around}(?:{coded}){around}={{0,2}}")


def _spell(character: str) -> tuple[str, ...]:
    """Return patterns of how a character may be written."""
    code = ord(character)
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}.get(character)
    spelt = (re.escape(character), rf"%(?:25){{0,3}}{code:02x}", rf"\\{{1,4}}(?:u00|x){code:02x}")
    escaped = rf"\\{{1,4}}{re.escape(character)}"
    return (*spelt, escaped, rf"&#0{{0,6}}{code};?", rf"&#x0{{0,6}}{code:x};?", *([named] if named else []))


def quote_reply(text: str, key: str) -> str:
    """Return a server's words as a message may hold them: one line, no key, nothing that moves a cursor."""
    return as_printable(" ".join(hide_key(text, key).split()))[:MAX_TOLD_CHARS]


def _excerpt(content: bytes, key: str) -> str:
    return quote_reply(content[:MAX_TOLD_BYTES].decode("utf-8", "replace"), key)


def _explain(error: Exception, key: str, timeout_s: float) -> str:
    """Say what went wrong on the way."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no reply within {timeout_s:g} s"
    if isinstance(reason, http.client.RemoteDisconnected):
        return "the connection was closed without a reply"
    if isinstance(reason, http.client.IncompleteRead):
        return f"a reply that breaks off after {len(reason.partial)} bytes"
    if isinstance(reason, http.client.HTTPException):
        return f"a reply that is no HTTP ({type(reason).__name__})"
    return quote_reply(str(reason), key) or type(reason).__name__
