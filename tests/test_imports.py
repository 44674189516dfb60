"""What may import what, by room; nobody imports a command; torch comes late."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

PACKAGES = ("sft", "eval")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.stem != "__init__"
}
COMMANDS = {
    name
    for name, tree in MODULES.items()
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets"}
# A room is a folder, or a module beside the folders. Each may import the rooms named here, and no others.
AGENT = "sft.actions sft.agent sft.answers sft.memory sft.prompts sft.json_text sft.errors sft.files sft.file_kinds "
AGENT += "sft.versions sft.rates sft.verbs "
MAY_IMPORT = {
    "sft.json_text": "sft.actions",
    "sft.agent": "sft.actions",
    "sft.answers": "sft.actions sft.agent sft.json_text",
    "sft.errors": "sft.verbs",
    "sft.rates": "",
    "sft.verbs": "",
    "sft.versions": "sft.files",
    "sft.actions": "",
    "sft.files": "sft.errors",
    "sft.file_kinds": "",
    "sft.markdown": "sft.errors",
    "sft.memory": "sft.actions sft.agent sft.answers sft.json_text",
    "sft.prompts": "sft.actions sft.agent sft.json_text sft.memory",
    "sft.recipe": AGENT,
    "sft.data": AGENT + "sft.recipe",
    "sft.evaluations": AGENT + "sft.data",
    "sft.pages": "",
    "sft.models": AGENT + "sft.recipe",
    "sft.batches": AGENT + "sft.recipe sft.data sft.models",
    "sft.compute": AGENT + "sft.markdown sft.recipe sft.data sft.models sft.batches sft.evaluations",
    "sft.training": AGENT + "sft.markdown sft.recipe sft.data sft.models sft.batches sft.evaluations sft.compute",
    "sft.trainer": AGENT + "sft.recipe sft.data sft.models sft.batches sft.compute sft.training",
    "sft.plan": AGENT + "sft.recipe sft.data sft.models sft.batches",
    "sft.sweep": AGENT + "sft.recipe sft.compute sft.training",  # which starts the command as a user would
    # The commands: none imports another. clinical-gui, in sft.__main__, looks them up in the table of sft.verbs.
    "sft.__main__": AGENT + "sft.training",
    "sft.check": AGENT + "sft.recipe sft.data sft.models sft.batches sft.pages",
    "sft.convert": AGENT + "sft.recipe sft.data sft.models sft.batches",
    "sft.split": AGENT + "sft.data",
    "sft.elements": AGENT + "sft.data",
    "sft.export": AGENT + "sft.recipe sft.data sft.models sft.training eval.rollouts",  # checks by rolling out
    "sft.run": AGENT + "sft.recipe sft.data sft.models sft.batches sft.compute sft.training sft.trainer"
    " sft.plan sft.sweep eval.rollouts",  # the validation rollout
    # Scoring knows no policy and no report; policies know no scoring.
    "eval.step_result": AGENT,
    "eval.scoring": AGENT + "sft.data eval.step_result eval.environments",
    "eval.reporting": AGENT + "sft.recipe sft.data sft.evaluations sft.pages sft.training eval.step_result"
    " eval.environments eval.scoring eval.rollouts",
    "eval.policies": AGENT + "sft.recipe sft.data sft.models sft.batches sft.compute",
    "eval.environments": AGENT + "sft.data sft.elements eval.step_result eval.policies",
    "eval.predictor": AGENT + "sft.recipe sft.data sft.elements sft.models sft.batches eval.policies",
    "eval.rollouts": AGENT + "sft.recipe sft.data sft.elements sft.models sft.batches sft.compute"
    " eval.step_result eval.environments eval.scoring eval.policies eval.predictor",
    "eval.rollout": AGENT
    + "sft.data sft.elements eval.step_result eval.scoring eval.reporting eval.policies eval.predictor"
    " eval.rollouts",
    "eval.live": AGENT
    + "sft.data sft.elements eval.environments eval.scoring eval.reporting eval.policies eval.rollouts",
    "eval.score": AGENT + "sft.data eval.step_result eval.scoring eval.reporting eval.rollouts",
    "eval.ablate": AGENT + "sft.recipe eval.scoring eval.reporting eval.rollouts",
}
# What is not as it should be yet.
STILL: set[tuple[str, str]] = set()
# Files whose form eval defines; of these sft knows none.
EVAL_FILES = ("steps.jsonl", "predictions.csv", "metrics.json", "details.json", "run.json", "report.html")


def _imports(tree, at_start=False):
    """Return the full names a module imports, those inside functions only where all are asked for.

    Those under `if TYPE_CHECKING` do not run and are left out.
    """
    found = set()
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not (at_start and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            nodes += ast.iter_child_nodes(node)
    return found


KNOWN = {name: _imports(tree) & set(MODULES) for name, tree in MODULES.items()}


def _room(name):
    return ".".join(name.split(".")[:2])


def test_rooms_import_those_they_may_and_nothing_imports_in_a_circle():
    assert set(MAY_IMPORT) == {_room(name) for name in MODULES}
    rooms = {room: set(allowed.split()) - {room} for room, allowed in MAY_IMPORT.items()}
    arrows = [(name, other) for name, known in KNOWN.items() for other in known if _room(name) != _room(other)]
    assert ("eval.rollouts.answering", "eval.policies.policy") in arrows  # arrows are found
    assert {(name, other) for name, other in arrows if _room(other) not in rooms[_room(name)]} <= STILL
    TopologicalSorter(rooms).prepare()  # raises where there is a circle
    TopologicalSorter(KNOWN).prepare()


def test_commands_are_imported_by_nobody_and_hold_no_class():
    assert {"sft.run", "sft.check.__main__", "eval.rollout", "eval.score", "eval.ablate"} <= COMMANDS
    for command in COMMANDS:
        assert [name for name, known in KNOWN.items() if command in known] == []
        assert [node.name for node in ast.walk(MODULES[command]) if isinstance(node, ast.ClassDef)] == []


def test_sft_names_no_file_whose_form_eval_defines():
    for name in MODULES:
        if name.startswith("sft.") and name != "sft.compute.fields":  # the report shows scores; still by metrics.json
            texts = {n.value for n in ast.walk(MODULES[name]) if isinstance(n, ast.Constant)}
            assert texts & set(EVAL_FILES) == set(), name


def test_commands_reach_nothing_heavy_before_they_run():
    """By our own modules alone; the next test holds what they import of others."""
    for command in COMMANDS:
        seen, waiting = set(), [command]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                imports = _imports(MODULES[module], at_start=True)
                assert {i.split(".")[0] for i in imports} & HEAVY == set(), f"{command} imports {module}"
                waiting += imports & set(MODULES)


@pytest.mark.parametrize("path", ["sft/run.py", "eval/rollout.py", "eval/live.py"])
def test_help_is_shown_without_torch(path):
    """Run by path, as a user does; -X importtime lists on stderr what was imported."""
    command = [sys.executable, "-X", "importtime", path, "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert path in finished.stdout
    assert not imported & HEAVY


@pytest.mark.slow
def test_bitsandbytes_is_imported_without_its_advice_and_may_still_warn():
    code = (
        "import sft, logging; from bitsandbytes.backends.cpu import ops; "
        "ops.logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s', 'no kernels'); "
        "ops.logger.warning('something else')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr and "something else" in done.stderr


def test_modules_say_in_their_first_line_what_they_hold():
    for name, tree in MODULES.items():
        assert (ast.get_docstring(tree) or "").partition("\n")[0].endswith((".", "?")), name


def test_modules_are_not_named_like_those_of_the_standard_library_or_a_dependency():
    """Run by path, a script's own folder comes first: `sft/datasets.py` would hide Hugging Face's."""
    for name in MODULES:
        parts = set(name.split(".")[1:]) - {"__main__"}
        assert parts & (HEAVY | sys.stdlib_module_names) == set(), name


def test_files_are_read_by_loaders_that_run_no_code():
    for name, tree in MODULES.items():
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [c for c in calls if c.startswith("torch.load(") and "weights_only=True" not in c]
        assert not [c for c in calls if c.startswith("yaml.load(") and "Loader=_RecipeLoader" not in c]
        opened = [c for c in calls if re.match(r"(Auto\w+|model_class)\.from_pretrained\(", c)]
        assert not [c for c in opened if "trust_remote_code=False" not in c], "else the library asks at the terminal"
        assert not [c for c in calls if "trust_remote_code=" in c and "trust_remote_code=False" not in c]
        assert "pickle" not in _imports(tree), name
