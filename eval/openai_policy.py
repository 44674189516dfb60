"""Answers from any server that speaks the OpenAI chat protocol. Knows nothing of scoring; imports no model library."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eval.policy import RawAnswer, StepRequest
from eval.schema import build_answer_schema
from sft.errors import UserError
from sft.prompts import AgentConfig, build_prompt
from sft.screenshots import read_as_shown

N_TRIES, FIRST_WAIT_S, TIMEOUT_S = 5, 1.0, 300
_STEP_FAULTS = (400, 413, 422)  # this request cannot be answered; the next may


class OpenAIPolicy:
    """Asks a server for each step, a whole batch in parallel; the key is read from `OPENAI_API_KEY`.

    The prompt's messages are those of training (`build_prompt`), the screenshot is sent as its file's bytes. The
    server fits pixels and counts tokens by rules of its own: `max_pixels` and `max_prompt_tokens` do not act here.
    """

    def __init__(self, url: str, model: str, agent: AgentConfig, is_constrained: bool):
        self.url, self.model, self.agent = url.rstrip("/") + "/chat/completions", model, agent
        self.is_constrained = is_constrained

    def answer(self, requests: Sequence[StepRequest]) -> list[RawAnswer]:
        """Answer each step; one that the server refuses is an error of that step.

        Raises:
            UserError: the server cannot be reached, refuses the key or the model, or keeps failing.
        """
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self._answer_one, requests))

    def _answer_one(self, request: StepRequest) -> RawAnswer:
        started = time.perf_counter()
        try:
            reply = self._post(self._build_body(request))
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

    def _build_body(self, request: StepRequest) -> dict[str, Any]:
        messages = build_prompt(request.instruction, request.memory, self.agent, request.elements)
        media_type, data = read_as_shown(request.image_path)
        url = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
        image = {"type": "image_url", "image_url": {"url": url}}
        for message in messages:
            message["content"] = [image if part["type"] == "image" else part for part in message["content"]]
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.agent.max_answer_tokens,
        }
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
