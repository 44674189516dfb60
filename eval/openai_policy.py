"""Answers from any server that speaks the OpenAI chat protocol. Knows nothing of scoring; imports no model library."""

import base64
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eval.policy import RawAnswer, StepRequest
from eval.schema import build_answer_schema
from sft.contract.screenshots import ScreenshotError, read_as_shown
from sft.errors import UserError
from sft.prompts import AgentConfig, build_prompt

N_TRIES, FIRST_WAIT_S, TIMEOUT_S = 5, 1.0, 300
_STEP_FAULTS = (400, 413, 422)  # this request cannot be answered; the next may

logger = logging.getLogger(__name__)


class OpenAIPolicy:
    """Asks a server for each step, a whole batch in parallel; the key is read from `OPENAI_API_KEY`.

    The prompt's messages are those of training (`build_prompt`), the screenshot is the one it showed. The
    server fits pixels and counts tokens by rules of its own: `max_pixels` and `max_prompt_tokens` do not act here.
    """

    def __init__(self, url: str, model: str, agent: AgentConfig, is_constrained: bool):
        self.url, self.model, self.agent = url.rstrip("/") + "/chat/completions", model, agent
        self.is_constrained = is_constrained
        self._sampling: dict[str, Any] = {"temperature": 0, "max_tokens": agent.max_answer_tokens}
        self._has_answered = False

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
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.url}: found a reply without choices[0].message.content ({error})") from error
        usage = reply.get("usage") or {}
        return RawAnswer(
            text,
            choice.get("finish_reason") or "stop",
            usage.get("prompt_tokens") or 0,
            usage.get("completion_tokens") or 0,
            time.perf_counter() - started,
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
        headers = {"Content-Type": "application/json"}
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        problem = ""
        for attempt in range(N_TRIES):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                    content: dict[str, Any] = json.loads(reply.read())
                    return content
            except urllib.error.HTTPError as error:
                text = error.read(10_000).decode("utf-8", "replace")
                if key:  # a server may repeat it, and the text goes to steps.jsonl and the report
                    text = text.replace(key, "[OPENAI_API_KEY]")
                problem = f"HTTP {error.code}: {text[:500]}"
                if error.code in _STEP_FAULTS:
                    raise _RefusedStep(problem) from error
                if error.code != 429 and error.code < 500:
                    raise UserError(
                        f"{self.url}: found {problem}; check --api_url, --model_path and the key"
                    ) from error
            except (urllib.error.URLError, OSError, ValueError) as error:
                problem = str(error)
        raise UserError(
            f"{self.url}: found no answer in {N_TRIES} tries ({problem}); give the same command again to go on"
        )


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
