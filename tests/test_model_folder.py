"""A model folder that cannot be used is refused for what it is, before anything of it is loaded."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT, build_tiny
from safetensors.torch import load_file, save_file
from test_forged_states import Payload
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from eval.predictor import load_model_for_inference
from sft.errors import UserError
from sft.export import __main__ as export
from sft.models.hub import find_base_model
from sft.models.model import open_adapter
from sft.models.model_folder import read_dtype
from sft.models.processors import load_processor
from sft.recipe.recipe import parse_recipe
from sft.run import check_inputs

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 4966659944\n"
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tiny_checkpoints, tmp_path):
    return shutil.copytree(tiny_checkpoints["qwen3_vl"], tmp_path / "model")


@pytest.fixture
def sharded(folder):
    """The same model in two files and an index, as large ones are published."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    half = len(names) // 2
    for file, part in zip(NAMES, (names[:half], names[half:])):
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    file_of = {name: NAMES[i >= half] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return folder


def _edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _refused(folder, *, needs_weights=True):
    with pytest.raises(UserError) as caught:
        find_base_model(str(folder), needs_weights=needs_weights)
    return str(caught.value)


def test_whole_model_in_several_files_is_taken(sharded):
    find_base_model(str(sharded))
    assert len(list(sharded.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("place", ["top", "text_config"])
def test_quantised_base_is_refused_and_the_unquantised_one_asked_for(folder, fields, method, place):
    def quantise(config):
        (config if place == "top" else config["text_config"])["quantization_config"] = fields
        return config

    _edit(folder / "config.json", quantise)
    for needs_weights in (True, False):
        message = _refused(folder, needs_weights=needs_weights)
        assert f"found a model that is already quantised ({method})" in message
        assert "expected the unquantised model it was made from" in message


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen3-VL-8B-Q4_K_M.gguf", "found GGUF files"),
        ("onnx/decoder.onnx", "found ONNX files"),
        ("pytorch_model-00001-of-00002.bin", "found pickled weights"),
        ("consolidated.00.pth", "found pickled weights"),
        ("tf_model.h5", "found weights for TensorFlow"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_weights_of_another_format_are_named(folder, name, found, has_config):
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"GGUF")
    if not has_config:
        (folder / "config.json").unlink()
    message = _refused(folder)
    assert (found if has_config else found.removeprefix("found ")) in message
    assert ("expected *.safetensors" if has_config else "found no config.json beside") in message


def test_folder_that_is_no_model_is_not_searched_to_its_ground(tmp_path):
    """It may be `/`, where files come and go while they are listed."""
    (tmp_path / "other/onnx").mkdir(parents=True)
    (tmp_path / "other/onnx/decoder.onnx").touch()
    assert "found no config.json; expected a model folder" in _refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"],
)
def test_git_lfs_pointer_in_place_of_a_file_is_told_with_its_command(folder, name):
    (folder / name).write_bytes(POINTER)
    message = _refused(folder)
    assert f"{folder / name}: found a Git LFS pointer" in message and "git lfs pull" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_git_lfs_pointer_is_told_by_all_who_open_a_tokenizer(folder, name):
    (folder / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{name}: found a Git LFS pointer; .*git lfs pull"):
        load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_byte_order_mark_that_an_editor_has_put_before_json_is_told(folder, name):
    (folder / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert f"{folder / name}: found a byte order mark, with which transformers cannot read it" in _refused(folder)


def test_every_file_that_is_not_whole_is_named_at_once(sharded):
    first, second = (sharded / name for name in NAMES)
    first.write_bytes(POINTER)
    with second.open("r+b") as file:
        file.truncate(second.stat().st_size - 1)
    (sharded / "tokenizer.json").write_text('{"model": {"vocab": {"a"')
    lines = _refused(sharded).splitlines()
    assert [line.split(":")[0].rpartition("/")[2] for line in lines] == ["tokenizer.json", *NAMES]
    assert "broken JSON" in lines[0] and "Git LFS pointer" in lines[1] and "damaged file" in lines[2]


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"<html>404</html>", b"\xff" * 64, b"\0" * 4096])
def test_file_that_holds_no_weights_is_a_damaged_one(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert f"{folder}/model.safetensors: found a damaged file" in _refused(folder)


@pytest.mark.parametrize("size", [7, 9, 200, 100_000, -8, -1, 1])
def test_weights_cut_anywhere_or_longer_than_they_say_are_damaged(folder, size):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:size] if size != 1 else whole + b"\0")
    assert "found a damaged file" in _refused(folder)
    path.write_bytes(whole)
    find_base_model(str(folder))


def test_missing_shards_are_named_and_an_unfinished_download_is_seen(sharded):
    (sharded / NAMES[1]).unlink()
    message = _refused(sharded)
    assert f"found 1 of the 2 files that model.safetensors.index.json names; expected {NAMES[1]} too" in message
    assert "hf download OWNER/NAME --local-dir FOLDER" in message and "has not finished" not in message
    part = sharded / ".cache/huggingface/download/Bq1d.4d7a21.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"")
    assert f"a download has not finished (found {part.name})" in _refused(sharded)
    find_base_model(str(sharded), needs_weights=False)


def test_shards_without_their_index_are_refused(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert f"found {NAMES[0]} and no model.safetensors.index.json" in _refused(sharded)


def test_adapter_given_as_a_base_is_told_from_a_broken_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "found an adapter and no config.json; expected a base model" in _refused(tmp_path)


@pytest.mark.slow
def test_refusal_comes_before_torch_together_with_the_data_s_problems(folder, tmp_path):
    _edit(folder / "config.json", lambda config: {**config, "quantization_config": {"quant_method": "awq"}})
    csv = write_trajectories(tmp_path, build_tasks(1))
    (tmp_path / "screens/0.png").unlink()
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model_name_or_path: {folder}\ntrain_csv: {csv}\noutput_dir: {tmp_path}/out\n")
    with pytest.raises(UserError, match=r"(?s)already quantised \(awq\).*found no file .*0.png"):
        check_inputs(parse_recipe([str(path)]))
    done = subprocess.run([sys.executable, "sft/run.py", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "already quantised (awq)" in done.stderr and "Traceback" not in done.stderr


def test_rollout_and_export_refuse_a_damaged_folder_too(folder, tmp_path):
    path = tmp_path / "agent_config.json"
    path.write_text(json.dumps(asdict(TINY_AGENT)))
    (folder / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        load_model_for_inference(folder, agent_config=path)
    with pytest.raises(UserError, match="git lfs pull"):
        export.find_base_folder(str(folder), "main")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),  # as transformers decides
        ({"dtype": None, "text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),  # what the weights are in
        ({"dtype": "auto"}, "float32"),
    ],
)
def test_number_format_is_found_wherever_published_configs_have_it(folder, change, expected):
    def keep_only(config):
        for part in (config, config["text_config"], config["vision_config"]):
            part.pop("dtype", None)
        return {**config, **change, "text_config": {**config["text_config"], **change.get("text_config", {})}}

    _edit(folder / "config.json", keep_only)
    assert read_dtype(folder) == expected


def test_number_format_that_no_config_names_is_that_of_most_weights(folder):
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    (name,) = (n for n in weights if n.endswith("layers.0.input_layernorm.weight"))
    save_file({**weights, name: weights[name].float()}, folder / "model.safetensors", {"format": "pt"})
    _edit(folder / "config.json", lambda c: {**c, "dtype": None, "text_config": {**c["text_config"], "dtype": None}})
    assert read_dtype(folder) == "bfloat16"


def test_number_format_that_is_not_computed_with_is_refused(folder):
    _edit(folder / "config.json", lambda config: {**config, "dtype": "float64"})
    with pytest.raises(
        UserError, match="config.json: dtype: found 'float64'; expected one of bfloat16, float16, float32"
    ):
        read_dtype(folder)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llama4"])
def test_untuned_base_is_loaded_in_the_format_of_its_text_part(tmp_path, family):
    folder = build_tiny(tmp_path / "base", ["Open the study"], family)

    def publish(config):
        text = config["text_config"]
        config.pop("dtype", None)
        text["dtype"] = "bfloat16"
        return config

    _edit(folder / "config.json", publish)
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(asdict(TINY_AGENT)))
    model = load_model_for_inference(folder, agent_config=path).policy.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("patch_size", 14, "found patch_size 14 beside 16 in config.json"),
        ("merge_size", 4, "found merge_size 4 beside 2 in config.json"),
        (
            "processor_class",
            "Llama4Processor",
            "found processor_class Llama4Processor beside a config.json of model type qwen3_vl",
        ),
    ],
)
def test_processor_of_another_model_is_refused_by_all_who_open_it(folder, key, value, found):
    """Its patches would have another size than the vision tower's: a traceback in the first step."""
    _edit(folder / "preprocessor_config.json", lambda fields: {**fields, key: value})
    assert found in _refused(folder)
    with pytest.raises(UserError, match=found):
        load_processor(folder, 65_536, 131_072)


@pytest.mark.parametrize("model_type", [["qwen3_vl"], {}, 3, None])
def test_model_type_that_is_no_name_is_an_unknown_family(folder, model_type):
    _edit(folder / "config.json", lambda fields: {**fields, "model_type": model_type})
    assert f"found model type {model_type!r}; expected one of qwen2_vl" in _refused(folder)


@pytest.mark.parametrize("places", [None, {}, ["a"], {"a": 5}, {"a": NAMES[0], "b": 5}])
def test_index_that_names_no_files_is_refused(sharded, places):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "model.safetensors.index.json: found no weight_map from names to files" in _refused(sharded)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", ".."])
def test_index_that_names_files_elsewhere_is_refused(sharded, place):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": NAMES[0], "b": place}}))
    assert f"model.safetensors.index.json: found {place!r}; expected names of files beside it" in _refused(sharded)


@pytest.mark.parametrize(
    ("part", "key"), [("text_config", "num_hidden_layers"), ("vision_config", "depth"), ("", "num_experts")]
)
@pytest.mark.parametrize("value", [10**9, -1, "12", 1e300])
def test_number_of_parts_that_would_never_be_built_is_refused(folder, part, key, value):
    def change(config):
        (config[part] if part else config)[key] = value
        return config

    _edit(folder / "config.json", change)
    assert f"found {key} {value!r}; expected a number from 0 to 10000" in _refused(folder, needs_weights=False)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]", '{"a":' * 100_000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_json_of_endless_levels_is_broken(folder, name, text):
    (folder / name).write_text(text)
    assert f"{name}: found broken JSON (more levels than can be read" in _refused(folder)


def test_json_larger_than_any_config_is_not_read(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(50_000_000_000)  # takes no room on the disk
        file.seek(-1, 2)
        file.write(b"}")
    assert "config.json: found a file of 50000000000 bytes" in _refused(folder)


HEADERS = {
    "length beyond the file": (2**63, b"{}"),
    "endless levels": (None, b'{"a":' * 100_000),
    "shape beyond the data": (None, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}),
    "offsets backwards": (None, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
    "offsets as text": (None, {"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}),
    "negative shape": (None, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "dtype of nowhere": (None, {"a": {"dtype": "os.system", "shape": [1], "data_offsets": [0, 4]}}),
    "a list": (None, b"[1]"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_absurd_header_of_weights_is_refused_before_memory_is_taken(folder, name):
    length, header = HEADERS[name]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes((length or len(text)).to_bytes(8, "little") + text + b"\0" * 4)
    (folder / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: found a damaged file"):
        open_adapter(folder)
    assert "model.safetensors: found a damaged file" in _refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.pkl", "tokenizer.model", "vocab.pkl", "tokenizer.pt"])
def test_pickled_tokenizer_is_not_opened(folder, tmp_path, name):
    proof = tmp_path / "was_run"
    for path in (*folder.glob("vocab.*"), *folder.glob("merges.txt"), folder / "tokenizer.json"):
        path.unlink(missing_ok=True)
    (folder / name).write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(UserError, match=r"found no tokenizer\.json"):
        load_processor(folder, 65_536, 98_304)
    assert not proof.exists()
