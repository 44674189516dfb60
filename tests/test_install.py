"""A wheel built from the checkout has all it needs, and nothing else; installed, it trains from any folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | {"TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT.pop("PYTHONPATH", None)  # or this checkout's packages would be in the way
PIP = [sys.executable, "-m", "pip"]


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_checkout(to):
    """Copy the two packages and what describes them; of demo and benchmarks, that they are there."""
    for name in ("sft", "eval"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("demo", "benchmarks"):
        (to / name).mkdir()
        (to / name / "__init__.py").touch()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network: setuptools is here already."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_checkout(folder / "src")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist"]
    run(*PIP, "wheel", "-q", *options, folder / "src", cwd=folder)
    (path,) = (folder / "dist").iterdir()
    return path


def make_environment(folder):
    """Return a new environment that holds nothing of ours, and sees this one's packages through a .pth file."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (own,) = folder.glob("lib/python3*/site-packages")
    there = [path for path in sys.path if path.endswith("site-packages")]
    (own / "packages_of_the_tests.pth").write_text("\n".join(there) + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment that the wheel is installed in."""
    programs = make_environment(tmp_path_factory.mktemp("installed") / "env")
    options = ["--no-deps", "--no-index", "--ignore-installed"]
    run(*PIP, "--python", programs / "python", "install", "-q", *options, wheel, cwd=programs)
    return programs


@pytest.mark.slow
def test_wheel_holds_the_two_packages_with_their_data_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = [path for package in ("sft", "eval") for path in (ROOT / package).rglob("*") if path.is_file()]
    assert held == {str(path.relative_to(ROOT)) for path in ours if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_installed_command_trains_checks_and_rolls_out_the_demo_from_another_folder(installed, tmp_path):
    demo, command = ROOT / "demo", installed / "clinical-gui"
    where = run(installed / "python", "-c", "import sft, eval; print(sft.__file__, eval.__file__)", cwd=tmp_path)
    assert all(str(installed.parent) in path for path in where.split())
    assert "test.csv" in run(command, "check", demo / "data/test.csv", cwd=tmp_path)
    options = f"--model_name_or_path {demo}/base --train_csv {demo}/data/train.csv --val_csv {demo}/data/val.csv "
    options += "--max_steps 2 --eval_strategy no --eval_on_start false --load_best_model_at_end false --task_end 3 "
    options += "--save_strategy no --output_dir out --screenshot_cache null --report_to none"
    run(command, "train", ROOT / "recipes/demo.yaml", *options.split(), cwd=tmp_path)
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    rolled = f"--model_path out --test_csv {demo}/data/test.csv --max_tasks 2 --output_dir results"
    assert "Report: results/report.html" in run(command, "rollout", *rolled.split(), cwd=tmp_path)
    assert "results" in run(command, "score", "results", cwd=tmp_path)


@pytest.mark.slow
def test_wheel_installs_by_uv(wheel, tmp_path):
    uv = Path(sysconfig.get_path("scripts"), "uv")
    programs = make_environment(tmp_path / "env")
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", programs / "python", wheel, cwd=tmp_path)
    assert run(programs / "clinical-gui", "--help", cwd=tmp_path).startswith("usage: clinical-gui VERB")


@pytest.mark.slow
def test_checkout_installed_to_work_on_it_has_demo_and_benchmarks_importable_too(tmp_path):
    copy_checkout(tmp_path / "src")
    programs = make_environment(tmp_path / "env")
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    run(*PIP, "--python", programs / "python", "install", "-q", *options, "-e", tmp_path / "src", cwd=tmp_path)
    found = run(programs / "python", "-c", "import demo, benchmarks; print(demo.__file__)", cwd=tmp_path)
    assert found.startswith(str(tmp_path / "src"))


def test_every_package_that_is_imported_is_a_dependency_or_an_extra():
    """The environments above see every package of the tests, so they would not miss one that a user lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [need for extra in project["optional-dependencies"].values() for need in extra]
    named = {re.split(r"[\[<>=]", need)[0].lower() for need in (*project["dependencies"], *needs)}
    unnamed = set()
    for path in [path for package in ("sft", "eval") for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            unnamed |= {(module.split(".")[0], str(path.relative_to(ROOT))) for module in modules}
    ours = {"sft", "eval", "demo", "benchmarks", *sys.stdlib_module_names}
    packages = packages_distributions()
    missing = {
        (module, path)
        for module, path in unnamed
        if module not in ours and not {name.lower() for name in packages.get(module, [module])} & named
    }
    assert missing == set()


def test_extras_that_extras_name_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for needs in extras.values():
        for need in needs:
            if need.startswith(f"{project['name']}["):
                assert set(need.partition("[")[2].rstrip("]").split(",")) < set(extras)
