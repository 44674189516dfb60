"""A Hub model is asked for as the library would: with the token, which nothing shows; each refusal says what to do."""

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import ROOT

from sft.errors import UserError
from sft.models.hub import find_base_model

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
ASK = "import sys; from sft.models.hub import find_base_model; from sft.errors import run_command; "
ASK += "run_command(lambda argv: find_base_model(argv[0], argv[1]))"


class _Hub(BaseHTTPRequestHandler):
    """Answers a model's config.json as its name says: `status-code`, and `200` to its token alone."""

    asked: list = []

    def do_GET(self):
        if "/resolve/" not in self.path:  # the library asks for something of its own
            self.send_error(404)
            return
        self.asked.append((self.path, self.headers.get("Authorization")))
        name = self.path.split("/")[2]
        status, _, code = name.removeprefix("answers-").partition("-")
        if name == "private":
            status, code = ("200", "") if self.headers.get("Authorization") == f"Bearer {TOKEN}" else ("401", "")
        body = json.dumps(
            {"model_type": "qwen3_vl", **({"quantization_config": {"quant_method": "awq"}} if code == "awq" else {})}
        )
        self.send_response(int(status))
        if code and code != "awq":
            self.send_header("X-Error-Code", code)
        if status == "429":
            self.send_header("Retry-After", "42")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def ask(hub, tmp_path):
    """Asks for a model in a process of its own, as a user would; returns exit code and all that was shown."""

    def ask(name, token=None, revision="main"):
        _Hub.asked.clear()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_TOKEN": token} if token else {}
        command = [sys.executable, "-c", ASK, name, revision]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        shown = done.stdout + done.stderr
        assert "Traceback" not in shown and TOKEN not in shown
        return done.returncode, shown

    return ask


def test_token_is_sent_and_a_private_model_is_found(ask):
    assert ask("owner/private", TOKEN) == (0, "")
    assert _Hub.asked == [("/owner/private/resolve/main/config.json", f"Bearer {TOKEN}")]
    assert ask("owner/answers-200") == (0, "")
    assert _Hub.asked[0][1] is None


def test_token_of_a_login_is_sent_too(ask, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(TOKEN)
    assert ask("owner/private") == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "token", "found"),
    [
        ("401", None, "the Hub answered 401: there is no such model, or it is gated or private: .*`hf auth login`"),
        ("401", TOKEN, "the Hub answered 401: it does not know the token; log in anew"),
        ("401-GatedRepo", None, "401: the model is gated; accept its terms there, then log in with `hf auth login`"),
        ("403-GatedRepo", TOKEN, "403: the account you are logged in with has no access; ask for it"),
        ("403", TOKEN, "403: the account you are logged in with has no access"),
        ("404-RepoNotFound", TOKEN, "404: there is no such model; download"),
        ("404-RepoNotFound", None, "404: there is no such model; if it is private, log in"),
        ("404-RevisionNotFound", None, r"404: the model has no revision 'main' \(model_revision\)"),
        ("404-EntryNotFound", None, "404: the model has no config.json"),
        ("429", None, "429: too many requests; wait 42 seconds and start again, or log in"),
        ("500", None, "500: it is out of order for now; start again later"),
        ("503", TOKEN, "503: it is out of order for now"),
        ("418", None, "the Hub answered 418; download"),
    ],
)
def test_each_refusal_says_what_to_do(ask, answer, token, found):
    code, shown = ask(f"owner/answers-{answer}", token)
    assert code == 2
    assert re.search(found, shown), shown
    assert shown.rstrip().endswith("pass --model_name_or_path /path/to/its/folder")


def test_model_of_which_the_cache_has_a_part_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--owner--model/snapshots/0123"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs/main").write_text("0123")
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    find_base_model("owner/model", needs_weights=False)
    with pytest.raises(
        UserError, match=r"0123: found no \*.safetensors; expected the model's weights there: download"
    ):
        find_base_model("owner/model")


def test_quantised_hub_model_is_refused_before_its_weights_are_fetched(ask):
    code, shown = ask("owner/answers-200-awq")
    assert code == 2
    assert "owner/answers-200-awq: found a model that is already quantised (awq)" in shown
    assert len(_Hub.asked) == 1
