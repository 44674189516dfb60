"""Post one request to a server: its reply, or in one line why there is none. Never shows the key."""

import http.client
import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

MAX_REPLY_BYTES = 16_000_000  # an answer of 512 tokens is some kB; some servers send every token's log-probabilities
MAX_TOLD_BYTES, MAX_TOLD_CHARS = 10_000, 500
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


_OPENER = urllib.request.build_opener(_NoRedirect)


def post_json(url: str, body: Any, key: str, timeout_s: float) -> Any:
    """Post JSON and return the JSON of the reply; `key` goes into the header and into no message, "" is none.

    A reply is read for at most `timeout_s` seconds and `MAX_REPLY_BYTES`.

    Raises:
        FailedTry: no whole reply, one that is no JSON, or a status that means: later.
        RefusedRequest: any other status than 200 to 299, redirects included.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    started = time.monotonic()
    try:
        with _OPENER.open(request, timeout=timeout_s) as reply:
            content, problem = _read(reply, MAX_REPLY_BYTES, started + timeout_s)
    except urllib.error.HTTPError as error:
        raise _explain_status(error, key, started + timeout_s) from error
    except (http.client.HTTPException, OSError) as error:
        raise FailedTry(_explain(error, timeout_s)) from error
    if problem:
        raise FailedTry(problem)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FailedTry(f"a reply that is no JSON: {_excerpt(content, key) or 'an empty one'}") from error


def _read(reply: Any, limit: int, deadline: float) -> tuple[bytes, str]:
    """Read a reply's body; return what came of it and what is wrong with it: too long, too slow, cut, or nothing."""
    content = bytearray()
    while chunk := reply.read1(65_536):
        content += chunk
        if len(content) > limit:
            return bytes(content), f"a reply of more than {limit} bytes"
        if time.monotonic() > deadline:
            return bytes(content), f"a reply that was not whole in time, after {len(content)} bytes"
    cut = f"a reply that breaks off after {len(content)} bytes, {reply.length} before its end" if reply.length else ""
    return bytes(content), cut


def _explain_status(error: urllib.error.HTTPError, key: str, deadline: float) -> FailedTry | RefusedRequest:
    """Return what a status other than 200 to 299 means, with the server's own words."""
    try:
        told = _excerpt(_read(error, MAX_TOLD_BYTES, deadline)[0], key)
    except (http.client.HTTPException, OSError):
        told = "(the rest of the reply is missing)"
    problem = f"HTTP {error.code}: {told}"
    if 300 <= error.code < 400:
        place = hide_key(str(error.headers.get("Location", "")), key)[:MAX_TOLD_CHARS]
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


def hide_key(text: str, key: str) -> str:
    """Return a server's words without the key, which it may repeat: they go to steps.jsonl and the report."""
    return text.replace(key, "[OPENAI_API_KEY]") if key else text


def _excerpt(content: bytes, key: str) -> str:
    return hide_key(content[:MAX_TOLD_BYTES].decode("utf-8", "replace"), key)[:MAX_TOLD_CHARS]


def _explain(error: Exception, timeout_s: float) -> str:
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
    return str(reason) or type(reason).__name__
