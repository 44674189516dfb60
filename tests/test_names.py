"""What is written says no token, user, machine or folder above those that were given: every file, binary too."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from training_runs import HOST, RECIPE, SECRETS, USER, name_user_and_host
from trajectory_samples import build_tasks, write_trajectories

from sft.recipe.recipe import RecipeError, parse_recipe
from sft.training.card import write_card
from sft.training.push import plan_upload

# One process runs the commands one after the other, as a user would from a folder that is nobody's business.
RUN = """
import json, sys
from importlib import import_module

for module, arguments in json.loads(sys.argv[1]):
    print("$", module, flush=True)
    import_module(module).main(arguments)
"""
WARD = "ward-mayNeverBeWritten"


def run_commands(ward, commands):
    """Run commands from a folder; return what they printed."""
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    environment = {**name_user_and_host(ward / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ward, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def find_names(folders, *needles):
    """Return where one of the words stands: in which file's name or content."""
    found = []
    for folder in folders:
        for path in [folder, *sorted(folder.rglob("*"))]:
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            name = str(path.relative_to(folder.parent))
            found += [(name, needle) for needle in needles if needle in name or needle.encode() in content]
    return found


@pytest.fixture(scope="module")
def ward(tiny_checkpoints, tmp_path_factory):
    """A folder in which everything was run that writes, with paths relative to it."""
    ward = tmp_path_factory.mktemp("ward") / WARD
    ward.mkdir()
    shutil.copytree(tiny_checkpoints["qwen3_vl"], ward / "base")
    (ward / "data").mkdir()
    write_trajectories(ward / "data", build_tasks(3))
    recipe = RECIPE.format(base="base", folder="data").replace("report_to: none", "report_to: tensorboard")
    (ward / "recipe.yaml").write_text(
        recipe.replace("max_steps: 12", "max_steps: 2").replace("save_steps: 3", "save_steps: 1")
    )
    scored = ["--test_csv", "data/tasks.csv", "--max_tasks", "1"]
    model = ["--model_path", "out", *scored, "--allow_overlap"]
    printed = run_commands(
        ward,
        [
            (
                "sft.run",
                ["recipe.yaml", "--output_dir", "out", "--memory_writer", "rule", "--max_answer_tokens", "32"],
            ),
            ("eval.rollout", [*model, "--output_dir", "results"]),
            ("eval.rollout", ["--policy", "replay", *scored, "--output_dir", "replay"]),
            ("eval.score", ["compare", "results", "results", "--output_dir", "compared"]),
            ("sft.check.__main__", ["data/tasks.csv", "--html", "pages/page.html"]),
            ("sft.export.__main__", ["--model_path", "out", "--to", "merged"]),
            ("sft.compute.__main__", ["out", "results"]),
        ],
    )
    (ward / "printed.txt").write_text(printed)
    return ward


WRITTEN = ("out", "results", "replay", "compared", "pages", "merged")


@pytest.mark.slow
def test_no_file_says_token_user_machine_or_a_folder_above(ward):
    folders = [ward / name for name in WRITTEN]
    written = {str(path.relative_to(ward)) for folder in folders for path in folder.rglob("*")}
    assert {"out/README.md", "out/trainer_state.json", "out/adapter_config.json", "out/compute_report.md"} <= written
    assert {"results/run.json", "replay/report.html", "compared/comparison.json", "pages/page.html"} <= written
    assert [name for name in written if "checkpoint-2/optimizer" in name], "checkpoints too"
    assert [name for name in written if "events.out.tfevents." in name and name.endswith(".0")]
    assert find_names(folders, *SECRETS.values(), USER, HOST, WARD, str(ROOT), str(ward.parent)) == []


@pytest.mark.slow
def test_nothing_printed_says_token_user_or_machine(ward):
    printed = (ward / "printed.txt").read_text()
    assert "saved to out" in printed and "Report: " in printed
    assert [word for word in (*SECRETS.values(), USER, HOST) if word in printed] == []


@pytest.mark.slow
def test_paths_given_from_the_root_stay_out_of_card_and_upload(ward, tmp_path):
    """A recipe and a run keep the paths they were given, which a resumed one needs; what is published does not."""
    model = shutil.copytree(ward / "out", tmp_path / "model")
    recipe = (model / "recipe.yaml").read_text()
    (model / "recipe.yaml").write_text(recipe.replace("data/", f"{ward}/data/").replace(": base", f": {ward}/base"))
    adapter = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": f"{ward}/base"}))
    contents = {name: c if isinstance(c, bytes) else c.read_bytes() for name, c in plan_upload(model).items()}
    contents["README.md"] = write_card(model).read_bytes()
    assert {"recipe.yaml", "adapter_config.json", "adapter_model.safetensors"} <= set(contents)
    assert [name for name, content in contents.items() if WARD.encode() in content] == []
    assert all(USER.encode() not in content and HOST.encode() not in content for content in contents.values())
    assert not any("events" in name or "ledger" in name or name.endswith((".pt", ".bin")) for name in contents)


def test_no_command_takes_a_key_that_the_command_line_would_show():
    """What stands there, every user of the machine can read in /proc."""
    sources = [path for room in ("sft", "eval", "demo") for path in (ROOT / room).rglob("*.py")]
    taken = r'add_argument\(\s*"--([a-z_]+)"'
    flags = {flag for path in sources for flag in re.findall(taken, path.read_text(encoding="utf-8"))}
    assert {"api_url", "model_path", "report_to"} <= flags
    assert [flag for flag in flags if {"key", "token", "password", "secret"} & {*flag.split("_")}] == []


def test_token_in_a_recipe_is_refused_unseen(tmp_path):
    for key in ("hub_token", "push_to_hub_token"):
        (tmp_path / "recipe.yaml").write_text(
            f"model_name_or_path: base\ntrain_csv: x.csv\n{key}: {SECRETS['HF_TOKEN']}\n"
        )
        with pytest.raises(RecipeError) as refusal:
            parse_recipe([str(tmp_path / "recipe.yaml")])
        assert key in str(refusal.value) and SECRETS["HF_TOKEN"] not in str(refusal.value)
