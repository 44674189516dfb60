"""The import graph: lower layers know nothing of higher ones, nobody imports entry points, torch comes late."""

import ast
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

PACKAGES = ("sft", "eval")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.stem != "__init__"
}
ENTRIES = {
    name
    for name, tree in MODULES.items()
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
}
MAY_IMPORT_TORCH = {
    "sft.models.model",
    "sft.batches.collator",
    "sft.trainer",
    "sft.training.checkpoint_trainer",
    "sft.run",
    "eval.policies.hf",
    "eval.predictor",
}
MAY_IMPORT_TORCH |= {"sft.training.watch"}  # the trainer's callbacks
MAY_IMPORT_TORCH |= {"eval.policies.decoding", "eval.rollouts.validation"}  # parts of the policy
MAY_IMPORT_TORCH |= {
    "sft.compute.flops",
    "sft.compute.step_meter",
    "sft.export.merge",
    "eval.rollouts.export_check",
}  # loaded by the trainer and by the export
MAY_IMPORT_TORCH |= {"sft.models.llama4", "sft.models.experts"}  # parts of the model
MAY_IMPORT_TORCH |= {"sft.models.linear_attention", "sft.models.tree_attention", "sft.models.kernels"}  # likewise
MAY_IMPORT_TORCH |= {"sft.training.build_lock"}  # changes how torch builds
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
# The packages of `sft` from the ground up: each may know those before it, and the modules that are in none.
FLOORS = ["recipe", "data", "models", "batches", "compute", "training", "convert", "check", "split", "export"]
# What the lowest layers may know of this project; everything above may know all of `sft`.
MAY_KNOW = {
    "sft.errors": set(),
    "sft.actions": set(),
    "sft.memory": {"sft.actions"},
    "sft.json_text": set(),
    "sft.prompts": {"sft.actions", "sft.json_text", "sft.memory"},
    "sft.file_kinds": set(),
    "sft.data.literals": {"sft.actions", "sft.memory"},
    "sft.data.boxes": {"sft.data.literals"},
    "sft.data.cells": {"sft.actions", "sft.memory", "sft.prompts", "sft.data.boxes", "sft.data.literals"},
    "sft.batches.packing": set(),
    "sft.data.compact": set(),
    "sft.batches.sampler": {"sft.errors"},
}


def _imports(tree, at_module_level=False):
    """Return the full names a module imports; those under `if TYPE_CHECKING` do not run and are left out."""
    found = set()
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not _is_skipped(node, at_module_level):
            nodes += ast.iter_child_nodes(node)
    return found


def _is_skipped(node, at_module_level):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    return at_module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


@cache
def _known(name):
    """Return the modules of this project that a module imports."""
    return _imports(MODULES[name]) & set(MODULES)


def _reachable(name):
    """Return every module outside this project that importing a module imports, by our own modules alone."""
    seen, outside, waiting = set(), set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        imports = _imports(MODULES[module], at_module_level=True)
        waiting += imports & set(MODULES)
        outside |= {i.split(".")[0] for i in imports} - set(PACKAGES)
    return outside


def test_the_graph_is_that_of_this_project():
    assert {"sft.run", "eval.rollout"} <= ENTRIES
    assert {"sft.actions", "sft.memory", "sft.prompts", "sft.recipe.config", "eval.rollouts.walk"} <= set(MODULES)
    assert "sft.memory" in _known("sft.prompts")


@pytest.mark.parametrize("name", MAY_KNOW)
def test_low_layer_knows_nothing_of_those_above(name):
    assert _known(name) <= MAY_KNOW[name]


@pytest.mark.parametrize("name", sorted(m for m in MODULES if m.startswith("sft.") and m.count(".") == 2))
def test_package_knows_only_packages_below_it(name):
    package = name.split(".")[1]
    known = {other.split(".")[1] for other in _known(name) if other.startswith("sft.") and other.count(".") == 2}
    assert known <= {package, *FLOORS[: FLOORS.index(package)]}


@pytest.mark.parametrize("name", sorted(m for m in MODULES if m.startswith("sft.")))
def test_training_knows_nothing_of_evaluation_but_for_its_rollouts(name):
    allowed = {m for m in MODULES if m.startswith("eval.")} if name in ("sft.run", "sft.export.__main__") else set()
    assert {m for m in _known(name) if m.startswith("eval.")} <= allowed


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_entry_point_is_imported_by_nobody_and_holds_no_class(name):
    assert [other for other in MODULES if name in _known(other)] == []
    assert [node.name for node in ast.walk(MODULES[name]) if isinstance(node, ast.ClassDef)] == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - MAY_IMPORT_TORCH))
def test_torch_is_imported_by_the_named_modules_alone(name):
    assert "torch" not in {i.split(".")[0] for i in _imports(MODULES[name], at_module_level=True)}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_entry_point_reaches_nothing_heavy_before_it_runs(name):
    assert _reachable(name) & set(HEAVY) == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_imports_no_cycle(name):
    """No module is reached again from what it imports, be it late."""
    seen, waiting = set(), list(_known(name))
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += _known(module)
    assert name not in seen


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_says_in_its_first_line_what_it_holds(name):
    docstring = ast.get_docstring(MODULES[name])
    assert docstring
    assert docstring.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_is_not_named_like_one_of_the_standard_library_or_a_dependency(name):
    """Run by path, a script's own folder comes first: `sft/datasets.py` would hide Hugging Face's."""
    for part in name.split(".")[1:]:
        assert part not in sys.stdlib_module_names
        assert part not in HEAVY


@pytest.mark.parametrize("name", ["sft.run", "eval.rollout"])
def test_help_is_shown_without_torch(name):
    """Run by path, as a user does; -X importtime lists on stderr what was imported."""
    path = name.replace(".", "/") + ".py"
    command = [sys.executable, "-X", "importtime", path, "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert path in finished.stdout
    assert not imported & set(HEAVY)


def test_bitsandbytes_is_imported_without_its_advice_and_may_still_warn():
    code = (
        "import sft, logging; from bitsandbytes.backends.cpu import ops; "
        "ops.logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s', 'no kernels'); "
        "ops.logger.warning('something else')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr and "something else" in done.stderr


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_are_read_by_loaders_that_run_no_code(name):
    calls = [ast.unparse(node) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]
    assert not [c for c in calls if c.startswith("torch.load(") and "weights_only=True" not in c]
    assert not [c for c in calls if c.startswith("yaml.load(") and "Loader=_RecipeLoader" not in c]
    assert not [c for c in calls if "trust_remote_code" in c]
    if name != "sft.data.compact":  # it pickles in memory only; it opens no file
        assert "pickle" not in _imports(MODULES[name])
