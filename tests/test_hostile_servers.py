"""Attacks of a server, or of what stands between: the key it repeats, replies without end, what its words do."""

import base64
import gzip
import html
import json
import logging
import ssl
import subprocess
import time
from urllib.parse import quote

import pytest
from test_servers import ANSWER, OK, answer_with, reply, serve
from training_runs import SECRETS, find_secrets
from trajectory_samples import build_tasks, write_trajectories

import eval.policies.openai_server as openai_policy
from eval.policies.openai_server import OpenAIPolicy, check_url
from eval.policies.posting import FailedTry, hide_key, hide_user, post_json
from eval.rollout import main
from sft.agent import AgentConfig
from sft.errors import UserError, run_command

KEY = SECRETS["OPENAI_API_KEY"]
ODD_KEY = 'sk-"a\\b<c>&d/e+f=g'
HIDDEN = "[OPENAI_API_KEY]"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    for name, value in {"FIRST_WAIT_S": 0.01, "MAX_WAIT_S": 0.01, "TIMEOUT_S": 1, "N_TRIES": 2}.items():
        monkeypatch.setattr(openai_policy, name, value)


def in_base64(text, before=0, encode=base64.b64encode):
    return encode(b"x" * before + text.encode() + b"yy").decode()


SPELLINGS = {
    "as it is": str,
    "in capitals": str.upper,
    "in an address": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "in an address, small": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "in an address, twice": lambda key: quote(quote(key, safe=""), safe=""),
    "in an address, as browsers do": lambda key: quote(key, safe=""),
    "in JSON": lambda key: json.dumps(key)[1:-1],
    "in JSON in JSON": lambda key: json.dumps(json.dumps(key))[3:-3],
    "in JSON, all escaped": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "in Python": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "in HTML": html.escape,
    "in HTML, all escaped": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "in HTML, in hex": lambda key: "".join(f"&#x{ord(c):X};" for c in key),
    "in hex": lambda key: key.encode().hex(),
    "in hex with colons": lambda key: key.encode().hex(":").upper(),
    "over lines": lambda key: "\n  ".join(key[i : i + 5] for i in range(0, len(key), 5)),
    "over lines in JSON": lambda key: "\\r\\n".join(key[i : i + 5] for i in range(0, len(key), 5)),
    "with what nobody sees": "\u200b".join,
    "in base64": in_base64,
    "in base64, one before": lambda key: in_base64(key, 1),
    "in base64, behind Bearer": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "in base64, two before": lambda key: in_base64(key, 2),
    "in base64 of addresses": lambda key: in_base64(key, 1, base64.urlsafe_b64encode),
}


@pytest.mark.parametrize("key", [KEY, ODD_KEY, "sk-proj-" + "aB3_" * 40])
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_key_is_hidden_however_it_is_spelt(spell, key):
    shown = hide_key(f"Wrong key: '{spell(key)}'.", key)
    assert HIDDEN in shown and len(shown) < 45
    rest = shown.replace(HIDDEN, "").lower()
    assert not any(key.lower()[i : i + 4] in rest for i in range(len(key) - 3))


@pytest.mark.parametrize("key", ["EMPTY", "a", "none"])
def test_key_that_is_no_secret_changes_no_answer(key):
    """Servers without keys are given such ones; as part of an answer they are its words."""
    assert hide_key('{"action":"CLICK","target":"EMPTY a none"}', key) == '{"action":"CLICK","target":"EMPTY a none"}'


@pytest.mark.parametrize("unit", ["\\", "%25", "&#0", " ", "s", "s ", "sk", "c2st"])
def test_text_made_to_be_searched_for_long_is_searched_fast(unit):
    text = "s" + unit * (200_000 // len(unit))
    started = time.process_time()
    assert hide_key(text, KEY) == text
    assert time.process_time() - started < 10


PLACES = {
    "answer": lambda key: (200, {"choices": [{"message": {"content": key + ANSWER}}]}),
    "thought": lambda key: (200, {"choices": [{"message": {"content": ANSWER, "reasoning": key}}]}),
    "name of a part": lambda key: (200, {"choices": [{"message": {"content": [{"type": key, "x": 1}, ANSWER]}}]}),
    "finish_reason": lambda key: (200, {"choices": [{"message": {"content": ANSWER}, "finish_reason": key}]}),
    "no answer": lambda key: (200, {"choices": [], "headers": {key: key}}),
    "no JSON": lambda key: (200, f"<html>{key}"),
    "refusal of a step": lambda key: (400, {"error": key}),
    "refusal": lambda key: (401, f"no such key: {key}"),
    "failure": lambda key: (500, {"error": [key]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_key_reaches_no_file_and_no_message_from_any_place_of_a_reply(place, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    csv = write_trajectories(tmp_path, build_tasks(1))
    percent = "".join(f"%{ord(c):02X}" for c in KEY)
    status, content = place(f"{KEY} {percent}")
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    shown = ""
    with serve(lambda n: answer_with(status, data) if n else answer_with(content=OK)) as server:
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m", "--batch_size", "1"]
        try:
            main([*engine, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run"), "--mode", "teacher"])
        except UserError as error:
            shown = str(error)
    printed = capfd.readouterr()
    assert find_secrets(tmp_path / "run", shown, *printed) == []
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert percent.encode() not in kept and percent not in shown + printed.out + printed.err
    assert HIDDEN.encode() in kept or HIDDEN in shown


@pytest.mark.parametrize("ending", ["\r", "\n", "\r\n", "\r\n\r\n"])
def test_key_that_ends_in_a_line_break_is_hidden_in_what_the_server_repeats(ending, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + ending)

    def repeat(handler):
        reply(handler, f"bad: {handler.headers['Authorization']}{ending}".encode(), 401)

    with serve(lambda n: repeat) as server:
        policy = OpenAIPolicy(server.url, "m", AgentConfig(), False)
        with pytest.raises(UserError, match=r"HTTP 401: bad: Bearer \[OPENAI_API_KEY\]; check") as refusal:
            policy._post({})
    assert KEY not in str(refusal.value)


def send(*parts, pause_s=0.0):
    """Return what writes bytes as they are, with a pause between; the last again and again."""

    def behave(handler):
        handler.close_connection = True
        try:
            for part in parts[:-1]:
                handler.wfile.write(part)
            while not handler.server.is_over.wait(pause_s):
                handler.wfile.write(parts[-1])
        except OSError:
            pass

    return behave


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "status line": send(b"HTTP/1.1 200 ", b"O", pause_s=0.2),
    "headers": send(HEAD, b"X", pause_s=0.2),
    "come again and again": send(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": send(HEAD + b"\r\n", b" ", pause_s=0.2),
    "body of a known length": send(HEAD + b"Content-Length: 999\r\n\r\n", b" ", pause_s=0.2),
    "size of a chunk": send(CHUNKED + b"5;", b"x", pause_s=0.2),
    "chunk": send(CHUNKED + b"ffff\r\n", b" ", pause_s=0.2),
    "lines behind the last chunk": send(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n"),
    "refusal": send(b"HTTP/1.1 500 X\r\n\r\n", b" ", pause_s=0.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("behave", ENDLESS.values(), ids=ENDLESS)
def test_reply_that_never_ends_is_given_up_in_time(behave):
    """The timeout of a socket begins anew with every byte, so it never ends one that comes byte by byte."""
    started = time.monotonic()
    with serve(lambda n: behave) as server, pytest.raises(FailedTry) as failure:
        post_json(server.url, {}, KEY, 1)
    assert time.monotonic() - started < 3
    assert (
        "no reply within 1 s" in str(failure.value) or "in time" in str(failure.value) or "500" in str(failure.value)
    )


GARBAGE = [
    f"{KEY}\r\n\r\n",
    f"HTTP/1.1 {KEY} OK\r\n\r\n",
    f"HTTP/1.1 -1 {KEY}\r\n\r\n",
    f"HTTP/9.9 200 {KEY}\r\n\r\n{{}}",
    f"HTTP/1.1 401 {KEY}\r\n{KEY}\r\n\r\n",
    f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcdefgh",
    f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n{KEY}",
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n{",
    f"HTTP/1.1 503 Busy\r\nRetry-After: {KEY}\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 503 Busy\r\nRetry-After: Mon, 99 Foo 99999 99:99:99 +9999\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 503 Busy\r\nRetry-After: 1e999\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 200 + "\r\n{}",
    "HTTP/1.1 200 OK\r\nX: " + "y" * 70_000 + "\r\n\r\n{}",
    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\x00\x1b[",
    "HTTP/1.1 200 OK\r\n\r\n" + "1" * 5_000,
    "HTTP/1.1 200 OK\r\n\r\n" + "[" * 100_000,
]


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_a_failed_try_that_shows_no_key_and_moves_no_cursor(text, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def behave(handler):
        handler.wfile.write(text.encode("latin-1"))
        handler.close_connection = True

    with serve(lambda n: behave) as server:
        policy = OpenAIPolicy(server.url, "m", AgentConfig(), False)
        with pytest.raises(UserError) as problem:
            policy._post({})
    assert KEY not in str(problem.value) and str(problem.value).isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [100, 900, 960, 980, 990, 1_000, 5_000])
def test_answer_nested_deeply_is_no_traceback(depth, tmp_path):
    nested = '{"choices":[{"message":{"content":[' + '{"a":' * depth + "1" + "}" * depth + "]}}]}"
    csv = write_trajectories(tmp_path, build_tasks(1))
    with serve(lambda n: answer_with(content=nested.encode() if n == 1 else OK)) as server:
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m", "--batch_size", "1"]
        command = [*engine, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run"), "--mode", "teacher"]
        main(command)
    assert len((tmp_path / "run/steps.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: gzip.compress(gzip.compress(data))])
def test_compressed_reply_is_not_unpacked(compress):
    """64 MB of spaces in 64 kB: nothing asks for compression, and nothing unpacks it."""
    bomb = compress(b" " * 64_000_000)
    with serve(lambda n: answer_with(200, bomb, Content_Encoding="gzip")) as server:
        with pytest.raises(FailedTry, match="no JSON: one in Content-Encoding 'gzip', which was not asked for"):
            post_json(server.url, {}, KEY, 5)
        assert server.seen[0][1]["Accept-Encoding"] == "identity"


def test_huge_answer_is_kept_in_part(monkeypatch):
    long = {"choices": [{"message": {"content": ANSWER + "x" * 3_000_000, "reasoning": "y" * 3_000_000}}]}
    many = {"choices": [{"message": {"content": [{"type": f"{i}", "x": 1} for i in range(1_000)] + [ANSWER]}}]}
    with serve(lambda n: answer_with(content=many if n else long)) as server:
        policy = OpenAIPolicy(server.url, "m", AgentConfig(), False)
        first, second = policy._answer_one({}), policy._answer_one({})
    assert first.text.startswith(ANSWER) and len(first.text) == 200_000
    assert len(first.said_elsewhere["reasoning"]) == 20_000
    assert second.text == ANSWER and len(second.said_elsewhere) < 10


@pytest.mark.slow
@pytest.mark.parametrize("count", [10**400, -5, "7", [1]], ids=["endless", "negative", "text", "list"])
def test_numbers_of_tokens_that_cannot_be_are_none(count, tmp_path):
    csv = write_trajectories(tmp_path, build_tasks(1))
    content = {**OK, "usage": {"prompt_tokens": count, "completion_tokens": count}}
    with serve(lambda n: answer_with(content=content)) as server:
        engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "m"]
        main([*engine, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run"), "--mode", "teacher"])
    assert json.loads((tmp_path / "run/metrics.json").read_text())["answers"]["n_prompt_tokens"] == 0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:se/cret@127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
        ("http://me:se#c?ret@127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
        ("http://me:secret@ret@127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
        ("http://secret@[::1]:9/v1", "http://[::1]:9/v1"),
        ("me:secret@127.0.0.1:9/v1", "127.0.0.1:9/v1"),
        ("https:/me:secret@127.0.0.1:9/v1", "127.0.0.1:9/v1"),
        ("http://127.0.0.1:9/v1?api_key=secret", "http://127.0.0.1:9/v1"),
        ("http://127.0.0.1:9/v1#secret", "http://127.0.0.1:9/v1"),
    ],
)
def test_password_in_an_address_is_shown_nowhere(url, shown):
    assert hide_user(url) == shown
    with pytest.raises(UserError, match="--api_url: found a user, password or query") as refusal:
        check_url(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["http://host/v1", "https://host:8000/a@b/v1", "http://[::1]:8000/v1"])
def test_address_without_a_password_is_taken_as_it_is(url):
    assert check_url(url) == hide_user(url) == url


@pytest.mark.parametrize(
    ("url", "key", "sent"),
    [
        ("http://gpu7:8000/v1", KEY, "the key and every screenshot"),
        ("http://10.0.0.7:8000/v1", "", "every screenshot"),
        ("http://localhost.evil.example/v1", KEY, "the key and every screenshot"),
        ("http://localhost:8000/v1", KEY, ""),
        ("http://127.0.0.1:8000/v1", KEY, ""),
        ("http://[::1]:8000/v1", KEY, ""),
        ("https://api.example/v1", KEY, ""),
    ],
)
def test_address_without_encryption_is_warned_of(url, key, sent, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with caplog.at_level(logging.WARNING):
        OpenAIPolicy(url, "m", AgentConfig(), False)
    assert (f"which is not encrypted: {sent} can be read on the way" in caplog.text) == bool(sent)
    assert sent or not caplog.records
    assert KEY not in caplog.text


def test_words_of_a_server_move_no_cursor(capsys):
    clears = "\x1b[2J\x1b]0;title\x07\u202e\r no"

    with serve(lambda n: answer_with(401, clears.encode())) as server, pytest.raises(UserError) as refusal:
        OpenAIPolicy(server.url, "m", AgentConfig(), False)._post({})
    assert str(refusal.value).isprintable()

    def fail(_):  # whatever else a message may quote
        raise UserError(f"found {clears}\nand more")

    with pytest.raises(SystemExit):
        run_command(fail)
    assert capsys.readouterr().err == "found ?[2J?]0;title??? no\nand more\n"


def test_certificate_of_a_server_is_checked(tmp_path):
    """A server that nobody vouches for is given neither key nor screenshot."""
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(lambda n: answer_with(content=OK)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(FailedTry, match="CERTIFICATE_VERIFY_FAILED"):
            post_json(server.url.replace("http://127.0.0.1", "https://localhost"), {}, KEY, 5)
        assert server.seen == []


def test_tls_that_is_never_agreed_on_is_given_up_in_time():
    started = time.monotonic()
    with serve(lambda n: answer_with(content=OK)) as server, pytest.raises(FailedTry, match="no reply within 1 s|SSL"):
        post_json(server.url.replace("http:", "https:"), {}, KEY, 1)
    assert time.monotonic() - started < 3
