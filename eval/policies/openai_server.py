"""Answers from any server that speaks the OpenAI chat protocol. Knows nothing of scoring; imports no model library."""

import base64
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from eval.policies.constrained import build_answer_schema
from eval.policies.policy import RawAnswer, StepRequest
from eval.policies.posting import FailedTry, RefusedRequest, hide_key, hide_user, post_json, quote_reply
from sft.agent import AgentConfig
from sft.data.screenshots import ScreenshotError, read_as_shown
from sft.errors import UserError
from sft.json_text import dump_json
from sft.prompts import build_prompt

# Waits double from the first, or are what the server asks for, up to the longest; `MAX_TIME_S` bounds all tries of one
# request.
N_TRIES, FIRST_WAIT_S, MAX_WAIT_S, TIMEOUT_S, MAX_TIME_S = 5, 1.0, 60.0, 300, 900
_STEP_FAULTS = (400, 413, 422)  # this request cannot be answered; the next may
# Where servers put what is not the answer's text: thoughts, by the name of each server, and calls of tools.
_ELSEWHERE = ("reasoning_content", "reasoning", "thinking", "refusal", "tool_calls", "function_call")
_MAX_KEPT_CHARS = 20_000
_MAX_TEXT_CHARS = 200_000  # of an answer, many times what any limit of tokens allows
_MAX_COUNT = 1_000_000_000  # of tokens: with a number of hundreds of digits no rate can be computed
_MAX_NAME_CHARS = 40  # of what a server calls a part or the end of an answer

logger = logging.getLogger(__name__)


class OpenAIPolicy:
    """Asks a server for each step, a whole batch in parallel; the key is read from `OPENAI_API_KEY`.

    The prompt's messages are those of training (`build_prompt`), the screenshot is the one it showed. The
    server fits pixels and counts tokens by rules of its own: `max_pixels`, `max_prompt_tokens` and
    `max_element_tokens` have no effect.
    """

    def __init__(self, url: str, model: str, agent: AgentConfig, is_constrained: bool):
        """Name the server; nothing is asked yet.

        Raises:
            UserError: no address that can be asked, or a key that cannot be one.
        """
        self.url, self.model, self.agent = check_url(url).rstrip("/") + "/chat/completions", model, agent
        self._key = read_key()
        self.is_constrained = is_constrained
        if is_readable_on_the_way(url):
            sent = "the key and every screenshot" if self._key else "every screenshot"
            logger.warning(
                "--api_url: found %s, which is not encrypted: %s can be read on the way; expected https, or a tunnel "
                "to localhost",
                self.url,
                sent,
            )
        self._sampling: dict[str, Any] = {"temperature": 0, "max_tokens": agent.max_answer_tokens}
        self._has_answered = self._has_told = False

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        """Answer each step; one that the server refuses is an error of that step.

        Raises:
            UserError: the server cannot be reached, refuses the key, the model or the whole first batch, or keeps
                failing.
        """
        with ThreadPoolExecutor(len(requests)) as pool:
            bodies = list(pool.map(self._try_body, requests))
            asked = [body for body in bodies if not isinstance(body, ScreenshotError)]
            answers = list(pool.map(self._answer_one, asked))
        if not self._has_answered and asked and all(answer.error is not None for answer in answers):
            raise UserError(
                f"{self.url}: found every request of the first batch refused, {len(answers)} of {len(answers)}; the "
                f"first: {answers[0].error}; expected answers: change what the server names, or, if these steps alone "
                "are at fault, give a larger --batch_size"
            )
        self._has_answered = self._has_answered or bool(asked)
        self._tell_of_silence(answers)
        answered = iter(answers)
        return [
            RawAnswer("", error=str(body)) if isinstance(body, ScreenshotError) else next(answered) for body in bodies
        ]

    def _try_body(self, request: StepRequest) -> dict[str, Any] | ScreenshotError:
        try:
            return self._build_body(request)
        except ScreenshotError as error:  # it went bad after the data was checked
            return error

    def _answer_one(self, body: Mapping[str, Any]) -> RawAnswer:
        started = time.perf_counter()
        try:
            reply = self._ask(body)
        except _RefusedStep as refusal:
            return RawAnswer("", error=str(refusal))
        choice = reply["choices"][0]
        text, elsewhere = read_message(choice["message"])
        reason, usage = choice.get("finish_reason"), reply.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        return RawAnswer(
            self._keep(text, _MAX_TEXT_CHARS),
            quote_reply(reason, self._key)[:_MAX_NAME_CHARS] if isinstance(reason, str) and reason else "stop",
            _read_count(counts.get("prompt_tokens")),
            _read_count(counts.get("completion_tokens")),
            time.perf_counter() - started,
            said_elsewhere={
                quote_reply(name, self._key)[:_MAX_NAME_CHARS]: self._keep(said, _MAX_KEPT_CHARS)
                for name, said in list(elsewhere.items())[: len(_ELSEWHERE)]
            },
        )

    def _keep(self, text: str, limit: int) -> str:
        """Return a server's words without the key and cut to what is kept of them."""
        return hide_key(text[: 2 * limit], self._key)[:limit]

    def _tell_of_silence(self, answers: Sequence[RawAnswer]) -> None:
        """Log the first answer whose text is empty though the server said something; the rest is told at the end."""
        silent = [a for a in answers if a.said_elsewhere and not a.text.strip()]
        if silent and not self._has_told:
            self._has_told = True
            logger.warning(
                "%s: found an answer without text; what the server said is in %s: it is kept in steps.jsonl and "
                "not scored. Switch off its parser of thoughts or tool calls (docs/serving.md)",
                self.url,
                ", ".join(silent[0].said_elsewhere),
            )

    def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post a request; where the server names a sampling field it does not take, post it again without that."""
        sampling = self._sampling
        while True:
            try:
                reply = self._post({**body, **sampling})
            except _RefusedStep as refusal:
                changed = _change_sampling(sampling, str(refusal))
                if changed == sampling:
                    raise
                sampling = changed
                continue
            if sampling != self._sampling:
                logger.warning("%s: this server takes %s; asked so from now on", self.url, json.dumps(sampling))
                self._sampling = sampling
            return reply

    def _build_body(self, request: StepRequest) -> dict[str, Any]:
        messages = build_prompt(request.instruction, request.memory, self.agent, request.elements)
        media_type, data = read_as_shown(request.image_path)
        url = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
        image = {"type": "image_url", "image_url": {"url": url}}
        for message in messages:
            message["content"] = [image if part["type"] == "image" else part for part in message["content"]]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.is_constrained:
            schema = {"name": "answer", "schema": build_answer_schema(self.agent)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post until there is a reply with an answer in it, at most `N_TRIES` times and for about `MAX_TIME_S`."""
        started, wait_s, tries, problem, reply = time.monotonic(), 0.0, 0, "", None
        while tries < N_TRIES and time.monotonic() - started + wait_s <= MAX_TIME_S:
            time.sleep(wait_s)
            tries += 1
            asked_wait_s = 0.0
            try:
                reply = post_json(self.url, body, self._key, TIMEOUT_S)
                if has_message(reply):
                    return reply
                problem = f"a reply without choices[0].message: {quote_reply(_dump(reply), self._key)}"
            except FailedTry as failure:
                problem, asked_wait_s, reply = str(failure), failure.wait_s, None
            except RefusedRequest as refusal:
                if refusal.status in _STEP_FAULTS:
                    raise _RefusedStep(str(refusal)) from refusal
                raise UserError(f"{self.url}: found {refusal}; check --api_url, --model_path and the key") from refusal
            wait_s = max(FIRST_WAIT_S * 2 ** (tries - 1), min(asked_wait_s, MAX_WAIT_S))
        if isinstance(reply, Mapping) and "error" not in reply:  # the server works, and says nothing to this step
            raise _RefusedStep(f"{problem}, in {tries} tries")
        raise UserError(
            f"{self.url}: found no answer in {tries} tries ({problem}); give the same command again to resume"
        )


def check_url(url: str) -> str:
    """Return a server's address.

    Raises:
        UserError: it cannot be asked, or holds a user, a password or a query, which messages and run.json would show.
    """
    shown = hide_user(url)
    if shown != url:
        raise UserError(
            f"--api_url: found a user, password or query beside {shown}; expected an address without: the key is "
            "read from OPENAI_API_KEY"
        )
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"--api_url: found {url!r}; expected an address such as http://localhost:8000/v1")
    return url


def is_readable_on_the_way(url: str) -> bool:
    """Say whether what is sent to an address leaves this machine without encryption."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname == "localhost":
        return False
    try:
        return not ip_address(str(parts.hostname)).is_loopback
    except ValueError:  # a name
        return True


def read_key() -> str:
    """Return the key of the environment, "" where there is none.

    Raises:
        UserError: it holds what no header may hold; the key itself is not shown.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY: found a line break or another character that no key has; expected the key")
    return key


def has_message(reply: Any) -> bool:
    """Say whether a reply holds an answer's message."""
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, Mapping) and isinstance(first.get("message"), Mapping)


def read_message(message: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return a message's text, its parts joined, and what it says elsewhere, by where.

    The content is a text, a list of texts and parts `{"type": "text", "text": ...}`, one such part, or, from servers
    that read JSON themselves, the answer's object.
    """
    content = message.get("content")
    if isinstance(content, Mapping) and "action" in content:
        content = _dump(content)
    texts: list[str] = []
    elsewhere: dict[str, str] = {}
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind in ("text", "output_text") and isinstance(text, str):
            texts.append(text)
        else:
            name = kind if isinstance(kind, str) and kind != "text" else "content"
            elsewhere[name] = elsewhere.get(name, "") + _dump(part)
    for name in _ELSEWHERE:
        if said := message.get(name):
            elsewhere[name] = said if isinstance(said, str) else _dump(said)
    return "".join(texts), elsewhere


def _dump(value: Any) -> str:
    """Write what a server sent as JSON; what could just be read may be nested too deeply to be written."""
    try:
        return dump_json(value)
    except RecursionError:
        return "(nested too deeply)"


def _read_count(value: Any) -> int:
    """Return a number of tokens as a server gives it, 0 where it gives none that can be."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT else 0


class _RefusedStep(Exception):
    """The server refuses this one request."""


def _change_sampling(sampling: Mapping[str, Any], refusal: str) -> dict[str, Any]:
    """Return the fields without the one that a refusal names: newer models take another limit, or no temperature."""
    changed = dict(sampling)
    if "temperature" in changed and "temperature" in refusal:
        del changed["temperature"]
    elif "max_tokens" in changed and "max_tokens" in refusal:
        changed["max_completion_tokens"] = changed.pop("max_tokens")
    return changed
