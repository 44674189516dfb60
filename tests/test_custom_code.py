"""Code that comes with a model is never run, and nobody is asked whether it should be."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
Path("{proof}").touch()
class Config(PretrainedConfig): model_type = "theirs"
class Tokenizer(PreTrainedTokenizerFast): pass
class Model(PreTrainedModel): pass
"""
AUTO_MAP = {
    "AutoConfig": "theirs.Config",
    "AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"],
    "AutoProcessor": "theirs.Config",
    "AutoImageProcessor": "theirs.Config",
    "AutoModel": "theirs.Model",
    "AutoModelForImageTextToText": "theirs.Model",
}
LOAD = """
import sys
from sft.errors import UserError
from sft.models.model import load_for_inference
from sft.models.processors import load_processor
from sft.recipe.settings import ModelSettings
for load in (
    lambda: load_processor(sys.argv[1], 65_536, 98_304),
    lambda: load_for_inference(ModelSettings(model_name_or_path=sys.argv[1], dtype="float32"), None),
):
    try:
        load()
    except UserError as error:
        print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {}),
        ("config.json", {"model_type": "theirs"}),
        ("tokenizer_config.json", {}),
        ("tokenizer_config.json", {"tokenizer_class": "TheirTokenizer"}),
        ("preprocessor_config.json", {}),
    ],
)
def test_code_of_a_model_is_not_run_though_somebody_says_yes(tiny_checkpoints, tmp_path, file, changed):
    folder, proof = shutil.copytree(tiny_checkpoints["qwen3_vl"], tmp_path / "model"), tmp_path / "was_run"
    (folder / "theirs.py").write_text(CODE.format(proof=proof))
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed, "auto_map": AUTO_MAP}))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, folder], input="y\n" * 9, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not proof.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert ("refused:" in done.stdout) == ("model_type" in changed)
