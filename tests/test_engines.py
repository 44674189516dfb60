"""Other engines: the OpenAI protocol against a real HTTP server, vLLM where it is installed."""

import base64
import importlib.util
import json
import re
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from training_runs import SECRETS, find_secrets
from trajectory_samples import build_tasks, write_trajectories

import eval.policies.openai_server as openai_policy
from eval.policies.policy import RawAnswer, StepRequest
from eval.policies.posting import hide_user
from eval.rollout import main
from sft.agent import AgentConfig
from sft.answers import format_answer
from sft.data.load import load_trajectories
from sft.data.overlap import hash_goal
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY

AGENT = AgentConfig()


class Server(ThreadingHTTPServer):
    """Answers the steps of a recording by their goal and memory; `faults` are the statuses it gives first.

    `unknown` are fields of a request that it does not take.
    """

    def __init__(self, tasks):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tasks, self.faults, self.bodies, self.keys, self.unknown = tasks, [], [], [], ()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            status = self.server.faults.pop(0) if self.server.faults else 200
            refused = next((name for name in self.server.unknown if name in body), None)
        goal, short, long = body["messages"][1]["content"][1]["text"].split("\n")
        task = next(t for t in self.server.tasks if goal == f"Goal: {t.instruction}")
        done = json.loads(long.split(": ", 1)[1]).get("completed_subtasks", [])
        reply = {
            "choices": [
                {"message": {"content": format_answer(task.steps[len(done)].gold, AGENT)}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 900, "completion_tokens": 40},
        }
        message = f"Unsupported parameter: '{refused}'" if refused else "no such luck"
        message += f" with {self.headers['Authorization']}"
        status = 400 if refused else status
        data = json.dumps(reply if status == 200 else {"error": {"message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def csv(tmp_path):
    return write_trajectories(tmp_path, build_tasks(3))


@pytest.fixture
def server(csv):
    with Server(load_trajectories(csv, show_progress=False)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def roll_out(server, csv, folder, *arguments):
    engine = ["--engine", "openai", "--api_url", server.url, "--model_path", "served-model"]
    main([*engine, "--test_csv", str(csv), "--output_dir", str(folder), *arguments])
    return json.loads((folder / "metrics.json").read_text())


def test_a_served_model_is_rolled_out_with_its_own_memory(server, csv, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRETS["OPENAI_API_KEY"])
    metrics = roll_out(server, csv, tmp_path / "run", "--batch_size", "3")
    assert metrics["matchers"]["action_target"]["ta"]["value"] == 1
    assert metrics["answers"]["n_prompt_tokens"] == 900 * 9
    assert set(server.keys) == {f"Bearer {SECRETS['OPENAI_API_KEY']}"} and len(server.bodies) == 9
    body = server.bodies[0]
    image = body["messages"][1]["content"][0]["image_url"]["url"]
    files = [(csv.parent / "screens" / f"{i}.png").read_bytes() for i in range(2)]
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")) in files
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("served-model", 0, 512)
    assert "response_format" not in body


def test_constrained_decoding_sends_the_schema(server, csv, tmp_path):
    roll_out(server, csv, tmp_path / "run", "--decoding", "constrained", "--max_tasks", "1")
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert [s["properties"]["action"]["const"] for s in schema["anyOf"]] == [a.name for a in AGENT.actions]


def test_a_busy_server_is_asked_again(server, csv, tmp_path, monkeypatch):
    monkeypatch.setattr(openai_policy, "FIRST_WAIT_S", 0.01)
    server.faults = [429, 503]
    assert roll_out(server, csv, tmp_path / "run")["matchers"]["action"]["swa"]["value"] == 1
    assert len(server.bodies) == 9 + 2


def test_a_step_that_the_server_refuses_is_an_error_of_that_step(server, csv, tmp_path, capsys):
    server.faults = [200, 400]
    metrics = roll_out(server, csv, tmp_path / "run", "--batch_size", "1", "--mode", "teacher")
    assert metrics["outcomes"]["error"] == 1 and metrics["outcomes"]["right"] == 8
    first = r"1 of 9 steps are errors; the first: \S+tasks\.csv: row [2-9]: HTTP 400"
    assert re.search(first, capsys.readouterr().out)


def test_a_server_that_refuses_the_whole_first_batch_ends_the_run_with_its_words(server, csv, tmp_path):
    server.unknown = ("messages",)
    with pytest.raises(UserError, match=r"first batch refused, 3 of 3; the first: HTTP 400: .*parameter: 'messages'"):
        roll_out(server, csv, tmp_path / "run")
    assert (tmp_path / "run/steps.jsonl").read_bytes() == b""  # nothing is left behind that a resume would keep
    server.unknown = ()
    assert roll_out(server, csv, tmp_path / "run")["matchers"]["action"]["swa"]["value"] == 1


@pytest.mark.parametrize(
    ("unknown", "sent"),
    [
        (("max_tokens",), {"temperature": 0, "max_completion_tokens": 512}),
        (("temperature",), {"max_tokens": 512}),
        (("temperature", "max_tokens"), {"max_completion_tokens": 512}),
    ],
)
def test_a_server_that_takes_other_sampling_fields_is_asked_with_those(server, csv, tmp_path, unknown, sent):
    server.unknown = unknown
    metrics = roll_out(server, csv, tmp_path / "run", "--batch_size", "1")
    assert metrics["matchers"]["action"]["swa"]["value"] == 1
    fields = ("temperature", "max_tokens", "max_completion_tokens")
    assert {name: server.bodies[-1][name] for name in fields if name in server.bodies[-1]} == sent
    assert len(server.bodies) == 9 + len(unknown)  # what the server takes is found out once


def test_a_run_of_nothing_but_errors_is_no_success(csv, tmp_path, capsys, monkeypatch):
    class Broken:
        def answer(self, requests):
            return [RawAnswer("", error="HTTP 400: no such field") for _ in requests]

    monkeypatch.setattr("eval.policies.policy.EmptyPolicy", Broken)
    with pytest.raises(UserError, match="found an error at every step; the first: row 2: HTTP 400: no such field"):
        main(["--policy", "empty", "--test_csv", str(csv), "--output_dir", str(tmp_path / "run")])
    assert f"9 of 9 steps are errors; the first: {csv}: row 2: HTTP 400: no such field" in capsys.readouterr().out
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".jpg", ".webp"])
def test_a_screenshot_is_sent_under_its_own_media_type(tmp_path, suffix):
    path = tmp_path / f"screen{suffix}"
    Image.new("RGB", (32, 32)).save(path)
    request = StepRequest("t", 0, "Open it", EMPTY_MEMORY, path)
    body = openai_policy.OpenAIPolicy("http://localhost", "m", AGENT, False)._build_body(request)
    expected = {".jpg": "jpeg", ".webp": "webp"}.get(suffix, "png")
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith(f"data:image/{expected};base64,")


def test_key_is_in_no_file_and_no_output_though_the_server_repeats_it(server, csv, tmp_path, monkeypatch, capfd):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    server.faults = [200, 400, 401]
    with pytest.raises(UserError, match=r"HTTP 401: .*no such luck with Bearer \[OPENAI_API_KEY\]") as refusal:
        roll_out(server, csv, tmp_path / "run", "--batch_size", "1")
    roll_out(server, csv, tmp_path / "run", "--batch_size", "1")
    assert "no such luck with Bearer [OPENAI_API_KEY]" in (tmp_path / "run/steps.jsonl").read_text()
    assert find_secrets(tmp_path / "run", str(refusal.value), *capfd.readouterr()) == []
    assert {"steps.jsonl", "report.html", "compute_ledger.jsonl"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_a_wrong_key_ends_the_run_and_it_goes_on_later(server, csv, tmp_path):
    server.faults = [200, 200, 401]
    with pytest.raises(UserError, match="HTTP 401"):
        roll_out(server, csv, tmp_path / "run", "--batch_size", "1")
    assert roll_out(server, csv, tmp_path / "run", "--batch_size", "1")["n_steps"] == 9
    assert len(server.bodies) == 3 + 7


def test_another_server_under_the_same_name_is_another_model(server, csv, tmp_path):
    roll_out(server, csv, tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["api_url"] == server.url
    engine = ["--engine", "openai", "--api_url", "http://me:secret@127.0.0.1:9/v1", "--model_path", "served-model"]
    with pytest.raises(UserError, match=r"rollout of something else \(different: api_url\)"):
        main([*engine, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run")])
    assert hide_user(engine[3]) == "http://127.0.0.1:9/v1"


def test_a_server_that_is_not_there_is_named(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(openai_policy, "FIRST_WAIT_S", 0.01)
    engine = ["--engine", "openai", "--api_url", "http://127.0.0.1:9/v1", "--model_path", "m"]
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*no answer in 5 tries"):
        main([*engine, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run")])


def write_agent(folder):
    folder.mkdir()
    path = folder / "agent_config.json"
    path.write_text(json.dumps(asdict(replace(AGENT, max_answer_tokens=77))))
    return str(path)


def test_prompts_of_a_served_model_are_made_by_the_agent_config_that_is_named(server, csv, tmp_path):
    agent = write_agent(tmp_path / "trained")
    assert roll_out(server, csv, tmp_path / "run", "--agent_config", agent)["n_steps"] == 9
    assert {body["max_tokens"] for body in server.bodies} == {77}


def test_served_model_is_refused_on_tasks_it_was_trained_on(server, csv, tmp_path):
    agent = write_agent(tmp_path / "trained")
    goals = {t.task_id: hash_goal(t.instruction) for t in server.tasks[:1]}
    (tmp_path / "trained/training_data.json").write_text(json.dumps({"train": {"tasks": goals}}))
    with pytest.raises(UserError, match="1 tasks that the model was trained on"):
        roll_out(server, csv, tmp_path / "run", "--agent_config", agent)
    assert not server.bodies
    metrics = roll_out(server, csv, tmp_path / "run", "--agent_config", agent, "--allow_overlap")
    assert metrics["run"]["data"]["trained_on"] == {"train": ["t1"]}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_is_asked_for_by_name_where_it_is_missing(csv, tmp_path, tiny_checkpoints):
    agent = tmp_path / "agent_config.json"
    agent.write_text(json.dumps(asdict(AGENT)))
    command = ["--engine", "vllm", "--model_path", str(tiny_checkpoints["qwen3_vl"]), "--agent_config", str(agent)]
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'"):
        main([*command, "--test_csv", str(csv), "--output_dir", str(tmp_path / "run")])
