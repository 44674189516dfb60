"""A checkpoint whose pickled states would run code is not resumed from, though its manifest says that it is whole."""

import hashlib
import json
import pickle
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sft.errors import UserError
from sft.recipe.recipe import parse_recipe
from sft.training.checkpoint_folder import find_code, finish_checkpoint, prepare_unfinished
from sft.training.resume import choose_checkpoint

STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "pytorch_model.bin")
STATES += ("global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt",)


class Payload:
    """What creates a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def _save_as_torch(payload, path):
    torch.save({"state": {}, "more": payload}, path)


def _save_as_pickle(payload, path):
    path.write_bytes(pickle.dumps(payload))


def _save_as_old_torch(payload, path):
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def _write_checkpoint(output_dir, saves):
    """Write a whole checkpoint; `saves` has what writes each file, by its name."""
    written = prepare_unfinished(output_dir) / "checkpoint-2"
    written.mkdir()
    for name, save in saves.items():
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        save(written / name)
    (written / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    finish_checkpoint(written, output_dir / written.name, {})
    return output_dir / written.name


def _choose(tmp_path, resume):
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: m\ntrain_csv: train.csv\n")
    recipe = parse_recipe([str(tmp_path / "recipe.yaml"), "--resume", str(resume)])
    return choose_checkpoint(recipe, tmp_path / "out", {})


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("save", [_save_as_torch, _save_as_pickle, _save_as_old_torch])
def test_forged_state_is_refused_before_it_is_loaded(tmp_path, name, save):
    proof = tmp_path / "was_run"
    checkpoint = _write_checkpoint(tmp_path / "out", {name: partial(save, Payload(proof))})
    for resume in ("auto", checkpoint):
        with pytest.raises(UserError, match=rf"{Path(name).name}.*which could run code when it is loaded"):
            _choose(tmp_path, resume)
    assert not proof.exists()
    with suppress(RuntimeError):  # of a file that is a pickle alone, once that was loaded
        torch.load(checkpoint / name, weights_only=False)  # as DeepSpeed loads its states
    assert proof.exists()


def test_states_that_a_training_saves_are_taken(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    states = {
        "optimizer.pt": optimizer.state_dict(),
        "rng_state.pth": {"numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()},
        "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt": {
            "loss_scaler": [LossScaler(1.0), DynamicLossScaler(2.0, 2.0, 1000, 1.0, 1, False, False)],
            "zero_stage": ZeroStageEnum.weights,
            "param_slice_mappings": [fragment_address(1, 2)],
        },
    }
    checkpoint = _write_checkpoint(
        tmp_path / "out", {name: partial(torch.save, state) for name, state in states.items()}
    )
    assert find_code(checkpoint) is None
    assert _choose(tmp_path, "auto") == checkpoint


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"global_step": "../../x"}',
        '{"global_step": -1}',
        '{"global_step": 2, "best_global_step": "../1"}',
        '{"global_step": 2, "best_global_step": 1, "best_metric": {}}',
    ],
    ids=["levels", "list", "empty", "path", "negative", "path of the best", "no number"],
)
def test_forged_course_of_a_training_is_refused_in_words(tmp_path, state):
    checkpoint = _write_checkpoint(tmp_path / "out", {})
    (checkpoint / "trainer_state.json").write_text(state)
    data = state.encode()
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    manifest["files"]["trainer_state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"trainer_state\.json: found no state of a training"):
        _choose(tmp_path, "auto")


@pytest.mark.parametrize(
    "manifest", ["[]", "[" * 100_000, '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 1}}']
)
def test_forged_manifest_is_damage(tmp_path, manifest):
    checkpoint = _write_checkpoint(tmp_path / "out", {})
    (checkpoint / "checkpoint.json").write_text(manifest)
    with pytest.raises(UserError, match=r"checkpoint\.json cannot be read"):
        _choose(tmp_path, checkpoint)
