"""Servers as public reports have them: replies that break off, come late or in another form."""

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from training_runs import SECRETS
from trajectory_samples import build_tasks, write_trajectories

import eval.policies.openai_server as openai_policy
import eval.policies.posting as posting
from eval.policies.openai_server import OpenAIPolicy, read_message
from eval.rollout import main
from sft.agent import AgentConfig
from sft.errors import UserError

ANSWER = '{"action":"CLICK","target":"Layout","short_term":{"last_action":"CLICK"},"long_term":{}}'
OK = {"choices": [{"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}], "usage": None}


def reply(handler, content, status=200, headers=(), said_length=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(said_length or len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def break_off(handler):
    reply(handler, json.dumps(OK).encode()[:20], said_length=500)
    handler.close_connection = True


def break_off_in_chunks(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ff\r\n" + json.dumps(OK).encode()[:20])
    handler.close_connection = True


def write_garbage(handler):
    handler.wfile.write(b"garbage\r\n")
    handler.close_connection = True


def close_silently(handler):
    handler.close_connection = True


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def be_late(handler):
    handler.server.is_over.wait(3)
    handler.close_connection = True


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.is_over.wait(0.1):
        handler.wfile.write(b" ")


def flood(handler):
    reply(handler, b" " * 3_000)


def answer_with(status=200, content=None, **headers):
    return lambda handler: reply(handler, content, status, [(k.replace("_", "-"), v) for k, v in headers.items()])


FAULTS = {
    "breaks off": (break_off, "a reply that breaks off after 20 bytes"),
    "breaks off in chunks": (break_off_in_chunks, "a reply that breaks off"),
    "garbage": (write_garbage, r"a reply that is no HTTP \(BadStatusLine\)"),
    "closed": (close_silently, "the connection was closed without a reply"),
    "reset": (reset, ".*reset by peer"),
    "late": (be_late, "no reply within 1 s"),
    "drips": (drip, "a reply that was not whole in time"),
    "floods": (flood, "a reply of more than 2000 bytes"),
    "empty": (answer_with(content=b""), "a reply that is no JSON: an empty one"),
    "HTML": (answer_with(content=b"<html>Bad gateway"), "a reply that is no JSON: <html>Bad gateway"),
    "list": (answer_with(content=[1]), r"a reply without choices\[0\].message: \[1\]"),
    "error with status 200": (
        answer_with(content={"error": {"code": 429}}),
        r"a reply without choices\[0\].message: {\"error\"",
    ),
    "busy": (answer_with(429, {"error": "slow down"}), "HTTP 429: .*slow down"),
    "overloaded": (answer_with(529, b"overloaded"), "HTTP 529: overloaded"),
    "down, with a reply that breaks off": (lambda h: reply(h, b"bad", 502, said_length=9), "HTTP 502: bad"),
    "timeout": (answer_with(408, b""), "HTTP 408"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.seen.append(("GET", dict(self.headers)))
        reply(self, OK)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            n = len(self.server.seen)
            self.server.seen.append(("POST", dict(self.headers)))
        self.server.times.append(time.monotonic())
        self.server.behave(n)(self)


@contextmanager
def serve(behave):
    """Yield a server that does with request n (from 0) what `behave(n)` returns."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behave, server.seen, server.times, server.lock = behave, [], [], threading.Lock()
    server.is_over, server.url = threading.Event(), f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.is_over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    for name, value in {"FIRST_WAIT_S": 0.01, "MAX_WAIT_S": 1.5, "TIMEOUT_S": 1}.items():
        monkeypatch.setattr(openai_policy, name, value)
    monkeypatch.setattr(posting, "MAX_REPLY_BYTES", 2_000)


@pytest.fixture
def roll_out(tmp_path):
    """Roll a server out on one task of three steps, one request at a time; return its steps and metrics."""
    csv = write_trajectories(tmp_path, build_tasks(1))

    def run(server, *arguments):
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m", "--batch_size", "1"]
        folder = tmp_path / "run"
        main([*engine, "--test_csv", str(csv), "--output_dir", str(folder), *arguments])
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        return steps, json.loads((folder / "metrics.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS.values()], ids=FAULTS)
def test_server_that_fails_for_a_while_is_asked_again(roll_out, fault):
    with serve(lambda n: fault if n in (1, 2) else answer_with(content=OK)) as server:
        steps, _ = roll_out(server)
    assert [step["predicted"]["action"] for step in steps] == ["CLICK"] * 3
    assert len(server.seen) == 3 + 2


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "problem"), FAULTS.values(), ids=FAULTS)
def test_server_that_keeps_failing_ends_the_run_in_one_message(roll_out, monkeypatch, fault, problem):
    monkeypatch.setattr(openai_policy, "N_TRIES", 2)
    expected = pytest.raises(UserError, match=rf"found no answer in 2 tries \({problem}")
    with serve(lambda n: answer_with(content=OK) if n == 0 else fault) as server, expected as refusal:
        roll_out(server)
    assert str(refusal.value).startswith(server.url) and "give the same command again" in str(refusal.value)


@pytest.mark.slow
def test_all_tries_of_a_request_end_in_bounded_time(roll_out, monkeypatch):
    monkeypatch.setattr(openai_policy, "MAX_TIME_S", 2)
    started = time.monotonic()
    with serve(lambda n: be_late) as server, pytest.raises(UserError, match="no answer in [23] tries"):
        roll_out(server)
    assert time.monotonic() - started < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "least_s", "most_s"),
    [("1", 1, 1.4), ("0.7", 0.7, 1.1), ("3600", 1.5, 1.9), ("soon", 0, 0.5), ("-5", 0, 0.5), ("nan", 0, 0.5)],
)
def test_busy_server_is_asked_again_when_it_says_but_within_bounds(roll_out, value, least_s, most_s):
    with serve(lambda n: answer_with(content=OK) if n else answer_with(429, b"", Retry_After=value)) as server:
        roll_out(server)
    assert least_s <= server.times[1] - server.times[0] < most_s + 1  # a second for other programs on this machine


@pytest.mark.slow
def test_busy_server_may_say_when_by_a_date(roll_out):
    def behave(n):
        return answer_with(content=OK) if n else answer_with(503, b"", Retry_After=formatdate(time.time() + 2))

    with serve(behave) as server:
        roll_out(server)
    assert 0.9 < server.times[1] - server.times[0] < 3


def message(**fields):
    return answer_with(content={"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": "stop"}]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": ANSWER}],
        [{"type": "text", "text": ANSWER[:30]}, {"type": "output_text", "text": ANSWER[30:]}],
        [ANSWER[:30], ANSWER[30:]],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "{}"}]}, {"type": "text", "text": ANSWER}],
        {"text": ANSWER},
        {"type": "text", "text": ANSWER},
        json.loads(ANSWER),
    ],
    ids=["part", "parts", "texts", "thought and part", "object", "typed object", "answer as an object"],
)
def test_answer_in_parts_is_joined(roll_out, content):
    with serve(lambda n: message(content=content)) as server:
        steps, metrics = roll_out(server)
    assert [json.loads(step["raw_text"]) for step in steps] == [json.loads(ANSWER)] * 3
    assert metrics["answers"]["parse_rate"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"content": None, "reasoning_content": ANSWER}, "reasoning_content"),
        ({"content": "", "reasoning": ANSWER}, "reasoning"),
        ({"content": None, "tool_calls": [{"function": {"name": "act", "arguments": ANSWER}}]}, "tool_calls"),
        ({"content": None, "function_call": {"name": "act", "arguments": ANSWER}}, "function_call"),
        ({"content": None, "refusal": "I can not help with patients."}, "refusal"),
        ({"content": [{"type": "refusal", "refusal": "I can not help."}]}, "refusal"),
        ({"content": 7}, "content"),
        ({"reasoning_content": "Hm."}, "reasoning_content"),
    ],
)
def test_what_a_server_says_elsewhere_is_kept_and_told_and_not_scored(roll_out, capsys, caplog, fields, where):
    with serve(lambda n: message(**fields)) as server:
        steps, metrics = roll_out(server)
    assert metrics["outcomes"]["unparsable"] == 3
    assert all(step["raw_text"] == "" and step["said_elsewhere"][where] for step in steps)
    assert steps[0]["parse_problem"] == f"no text in the answer; what the server said is in {where}"
    assert [record.getMessage() for record in caplog.records if "without text" in record.getMessage()] == [
        f"{server.url}/chat/completions: found an answer without text; what the server said is in {where}: it is "
        "kept in steps.jsonl and not scored. Switch off its parser of thoughts or tool calls (docs/serving.md)"
    ]
    out = " ".join(capsys.readouterr().out.split())
    assert (
        f"3 of 3 answers are without text, and so count as unreadable. What the server said instead: {where} (3)"
        in out
    )


def test_thought_beside_an_answer_is_kept_without_a_word(roll_out, capsys, caplog):
    with serve(lambda n: message(content=ANSWER, reasoning_content="Hm.")) as server:
        steps, metrics = roll_out(server)
    assert metrics["answers"]["parse_rate"] == 1 and steps[0]["said_elsewhere"] == {"reasoning_content": "Hm."}
    assert "without text" not in capsys.readouterr().out + caplog.text


def test_answer_that_a_filter_held_back_is_told(roll_out, capsys):
    choice = {"message": {"content": None}, "finish_reason": "content_filter"}
    with serve(lambda n: answer_with(content={"choices": [choice], "usage": [1]})) as server:
        steps, _ = roll_out(server)
    assert [step["finish_reason"] for step in steps] == ["content_filter"] * 3
    assert "finish_reason content_filter (3)" in " ".join(capsys.readouterr().out.split())


def test_answer_of_blanks_alone_is_told_as_one_without_text(roll_out, capsys):
    with serve(lambda n: message(content=" \n" if n else ANSWER)) as server:
        roll_out(server)
    assert "2 of 3 answers are without text" in " ".join(capsys.readouterr().out.split())


def test_tokens_are_those_that_the_server_counted(roll_out):
    with serve(
        lambda n: answer_with(content={**OK, "usage": {"prompt_tokens": 31, "completion_tokens": 7}})
    ) as server:
        steps, _ = roll_out(server)
    assert [(step["n_prompt_tokens"], step["n_answer_tokens"]) for step in steps] == [(31, 7)] * 3


def test_step_without_an_answer_is_an_error_of_that_step_where_the_server_works(roll_out):
    with serve(lambda n: answer_with(content={"choices": []} if 1 <= n <= 5 else OK)) as server:
        steps, metrics = roll_out(server)
    assert [step["error"] is None for step in steps] == [True, False, True]
    assert steps[1]["error"] == 'row 3: a reply without choices[0].message: {"choices":[]}, in 5 tries'
    assert metrics["outcomes"]["error"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed_and_the_key_goes_nowhere_else(roll_out, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS["OPENAI_API_KEY"])
    with serve(lambda n: answer_with(content=OK)) as other:
        target = f"{other.url}/chat/completions?key={SECRETS['OPENAI_API_KEY']}"
        expected = pytest.raises(UserError, match=rf"HTTP {status}: a redirect to 'http://127.*not followed")
        with serve(lambda n: answer_with(status, b"", Location=target)) as server, expected as refusal:
            roll_out(server)
    assert other.seen == [] and len(server.seen) == 1
    assert SECRETS["OPENAI_API_KEY"] not in str(refusal.value)


@pytest.mark.parametrize("key", ["sk-secret\nsecond", "sk-secret\x00", "sk-sécret"])
def test_key_that_no_header_may_hold_is_refused_unseen(monkeypatch, key):
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(UserError, match="OPENAI_API_KEY: found a line break") as refusal:
        OpenAIPolicy("http://localhost:8000/v1", "m", AgentConfig(), False)
    assert "sk-" not in str(refusal.value)


def test_line_break_at_the_end_of_a_key_is_taken_off(roll_out, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\n")
    with serve(lambda n: answer_with(content=OK)) as server:
        roll_out(server)
    assert {headers["Authorization"] for _, headers in server.seen} == {"Bearer sk-one"}


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "file:///etc/passwd", "http://", "http://a b/v1", "http://h:x/v1"]
)
def test_address_that_cannot_be_asked_is_refused_at_once(url):
    with pytest.raises(UserError, match="--api_url: found .*; expected an address such as http://localhost:8000/v1"):
        OpenAIPolicy(url, "m", AgentConfig(), False)


def test_password_in_an_address_is_refused_unseen():
    with pytest.raises(UserError, match="found a user, password or query beside http://127.0.0.1:9/v1;") as refusal:
        OpenAIPolicy("http://me:secret@127.0.0.1:9/v1", "m", AgentConfig(), False)
    assert "secret" not in str(refusal.value)


def test_message_of_no_known_form_has_no_text():
    assert read_message({}) == ("", {})
    assert read_message({"content": [None, 3, {"type": "image_url"}]}) == (
        "",
        {"content": "null3", "image_url": '{"type":"image_url"}'},
    )
