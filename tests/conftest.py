"""Fixtures that several test files share: tiny checkpoints, built once a session, and a small set of tasks."""

import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from sft.data.load import load_trajectories
from sft.prompts import build_system_text

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llama4", "qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
ROOT = Path(__file__).resolve().parent.parent
DEMO_FILES = sorted((ROOT / "demo" / "data").glob("*.csv"))


@cache
def load_demo(path):
    """Return the trajectories of one demo file, read once a session."""
    return load_trajectories(path, show_progress=False)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory):
    """A checkpoint folder of each family, its tokenizer trained on the texts of the sample tasks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = [build_system_text(TINY_AGENT), *(row[c] for row in build_tasks(4) for c in ("Instruction", "Output"))]
    return {family: build_tiny(folder / family, texts, family) for family in FAMILIES}


def build_tiny(folder, texts, family):
    """Write a tiny checkpoint of any family; return its folder."""
    from demo.tiny_llama4 import build_tiny_llama4
    from demo.tiny_qwen3vl import build_tiny_checkpoint

    return build_tiny_llama4(folder, texts) if family == "llama4" else build_tiny_checkpoint(folder, texts, family)


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tiny_checkpoints):
    """The folder of each family in turn."""
    return tiny_checkpoints[request.param]


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Three screenshots of different sizes with different pixels."""
    folder, rng = tmp_path_factory.mktemp("screens"), np.random.default_rng(0)
    paths = []
    for i, (width, height) in enumerate([(320, 200), (200, 320), (256, 256)]):
        paths.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def tasks_csv(tmp_path_factory):
    """A CSV of four tasks of 3 steps on two screenshots."""
    return write_trajectories(tmp_path_factory.mktemp("tasks"), build_tasks(4))


@pytest.fixture(scope="session")
def tasks(tasks_csv):
    return load_trajectories(tasks_csv, show_progress=False)


@pytest.fixture(scope="module")
def recipe(tiny_checkpoints, tmp_path_factory):
    """The path of a short training's recipe; a test file that wants another one defines its own."""
    from training_runs import write_recipe

    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_checkpoints["qwen3_vl"])


@pytest.fixture(scope="module")
def attempt(recipe):
    """Runs real processes of that training (see `start_attempts`)."""
    from training_runs import start_attempts

    with start_attempts(recipe) as attempt:
        yield attempt


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that are built in a test, in their order."""
    from sft.trainer import TrajectoryTrainer

    built = []

    def keep(self, *args, build=TrajectoryTrainer.__init__, **kwargs):
        build(self, *args, **kwargs)
        built.append(self)

    monkeypatch.setattr(TrajectoryTrainer, "__init__", keep)
    return built


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, and what resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield (
        folder,
        lambda n_bytes: subprocess.run(["mount", "-o", f"remount,size={n_bytes // 1024}k", folder], check=True),
    )
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def browser():
    """Return headless Chromium, the system's or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="found no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        program = next(
            (p for p in ("/usr/bin/chromium", playwright.chromium.executable_path) if Path(p).is_file()), None
        )
        if program is None:
            pytest.skip("found no Chromium: apt-get install chromium, or playwright install --with-deps chromium")
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
