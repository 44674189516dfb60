"""Uploads against a real HTTP server that speaks the Hub's protocol: what leaves this machine, and who sees it."""

import base64
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load, save_file

from sft.agent import AgentConfig
from sft.errors import UserError
from sft.recipe.launch import build_training_arguments
from sft.recipe.recipe import parse_recipe
from sft.training.push import plan_upload

TOKEN = "hf_" + "x" * 30
SECRETS = {
    "training_data.json": '{"train": {"tasks": {"patient-7": "hash"}}}',
    "compute_ledger.jsonl": '{"event": "start"}',
    "training_args.bin": TOKEN,
    "trainer_state.json": "{}",
    "quarantine.json": "patient-7",
    "evaluations.jsonl": "{}",
    "steps.jsonl": "patient-7",
    "screen.png": "patient-7",
    "core.1234": "memory dump",
    ".env": TOKEN,
    "data/train.csv": "patient-7",
    "runs/events.out.tfevents.1.host.1.0": "host",
    "checkpoint-2/optimizer.pt": "state",
    "checkpoint-2/adapter_model.safetensors": "older",
}


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent: `created` repositories, `files` committed by name, every request's path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.created, self.files, self.large, self.paths, self.tokens = [], {}, {}, [], set()
        self.refuses = False


class Handler(BaseHTTPRequestHandler):
    def _answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        self.server.large[self.path.rsplit("/", 1)[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        hub.paths.append(self.path)
        hub.tokens.add(self.headers["Authorization"])
        address = f"http://127.0.0.1:{hub.server_port}"
        if hub.refuses:
            self._answer({"error": "You are not allowed to write here"}, 403)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{address}/clinic/model"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith(".safetensors") else "regular"} for n in names]
            self._answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{address}/lfs/{o['oid']}"}}} for o in objects]
            self._answer({"transfer": "basic", "objects": actions})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[entry["value"]["path"]] = hub.large[entry["value"]["oid"]]
            self._answer({"commitUrl": f"{address}/clinic/model/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer({"error": self.path}, 404)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def model(tmp_path):
    """A trained model's folder, with everything in it that must not leave."""
    folder = tmp_path / "model"
    for name, content in SECRETS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    save_file({"lora_A": np.ones((2, 3), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "agent_config.json").write_text(json.dumps(asdict(AgentConfig())))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/alice/qwen", "r": 4}))
    (folder / "recipe.yaml").write_text("train_csv: /home/alice/ward 3/train.csv\nlora_r: 4\n")
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# model\n")
    return folder


def _run(hub, *command):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def _push(hub, model, *arguments):
    return _run(hub, "-m", "sft.export", "--model_path", str(model), "--push", "clinic/model", *arguments)


@pytest.mark.slow
def test_upload_creates_a_private_repository_and_leaves_everything_secret_behind(hub, model):
    finished = _push(hub, model)
    assert finished.returncode == 0, finished.stderr
    (created,) = hub.created
    assert (created["organization"], created["name"], created["visibility"]) == ("clinic", "model", "private")
    assert set(hub.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "agent_config.json",
        "recipe.yaml",
    }
    assert load(hub.files["adapter_model.safetensors"])["lora_A"].tolist() == [[1, 1, 1], [1, 1, 1]]
    everything = b"".join(hub.files.values())
    for secret in (b"alice", b"ward", b"patient-7", TOKEN.encode()):
        assert secret not in everything
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in finished.stdout + finished.stderr
    assert "commit" in finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "visibility"),
    [
        ({"hub_model_id": "clinic/model"}, "private"),
        ({"hub_private_repo": None}, "private"),
        ({"hub_private_repo": False}, "public"),
    ],
)
def test_training_that_pushes_creates_a_private_repository_unless_told_otherwise(hub, model, keys, visibility):
    code = f"import pathlib, sft.training.push as p; p.push_trained(pathlib.Path({str(model)!r}), {keys})"
    finished = _run(hub, "-c", code)
    assert finished.returncode == 0, finished.stderr
    assert [created["visibility"] for created in hub.created] == [visibility]


@pytest.mark.slow
def test_refusal_by_the_hub_ends_with_a_message_and_a_way_out(hub, model):
    hub.refuses = True
    finished = _push(hub, model, "--public")
    assert finished.returncode == 2
    assert "hf auth login" in finished.stderr and "Traceback" not in finished.stderr
    assert TOKEN not in finished.stderr


def test_folder_without_weights_is_not_uploaded(tmp_path):
    (tmp_path / "README.md").write_text("# nothing")
    with pytest.raises(UserError, match="found no weights"):
        plan_upload(tmp_path)


def test_adapter_that_names_no_base_is_not_uploaded(model):
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="found no base_model_name_or_path"):
        plan_upload(model)


@pytest.mark.parametrize("name", ["merges.txt", "training_curves.png", "adapter_model.safetensors"])
def test_link_that_would_bring_a_file_of_elsewhere_is_not_uploaded(model, tmp_path_factory, name):
    private = tmp_path_factory.mktemp("elsewhere") / "private"
    private.write_bytes(b"patient-7")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(private)
    with pytest.raises(UserError, match=rf"found links to files elsewhere: .*{name}"):
        plan_upload(model)


def test_plan_holds_the_shards_of_an_export(model):
    (model / "model-00001-of-00002.safetensors").touch()
    assert "model-00001-of-00002.safetensors" in plan_upload(model)


def test_recipe_takes_the_hub_keys_but_no_token_and_the_trainer_itself_never_uploads(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\ntrain_csv: t.csv\noutput_dir: out\nuse_cpu: true\nbf16: false\n")
    parsed = parse_recipe([str(recipe), "--push_to_hub", "true", "--hub_model_id", "clinic/model"])
    assert parsed.training["push_to_hub"] is True
    assert build_training_arguments(parsed).push_to_hub is False
    with pytest.raises(UserError, match="hub_token: found a key that does not apply here"):
        parse_recipe([str(recipe), "--hub_token", TOKEN])
