"""Processors: pixels, budgets, saving and reopening, and what is said about folders that hold none."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from demo.tiny_qwen3vl import build_tiny_checkpoint
from sft.errors import UserError
from sft.models.processors import load_processor, save_processor

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Goal: open the study<|im_end|>\n"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {family: build_tiny_checkpoint(folder / family, ["Goal: open the study"], family) for family in FAMILIES}


@pytest.fixture
def screenshot():
    pixels = np.random.default_rng(0).integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _inputs(processor, image):
    return processor(text=[PROMPT], images=[image], return_tensors="pt")


@pytest.mark.parametrize(
    ("family", "max_pixels", "tokens"),
    [
        ("qwen3_vl", 2_000_000, 40 * 25),  # 1280x800 as it is, 32 px a token
        ("qwen3_vl", 131_072, 14 * 8),  # 448x256 is the largest grid of 32 px in the budget
        ("qwen2_5_vl", 2_000_000, 46 * 29),  # 1288x812, 28 px a token
    ],
)
def test_pixel_budget_decides_the_number_of_image_tokens(checkpoints, screenshot, family, max_pixels, tokens):
    processor = load_processor(checkpoints[family], 65_536, max_pixels)
    inputs = _inputs(processor, screenshot)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens
    assert inputs["pixel_values"].shape[0] == 4 * tokens


def test_small_screenshot_is_enlarged_to_min_pixels(checkpoints):
    inputs = _inputs(load_processor(checkpoints["qwen3_vl"], 65_536, 131_072), Image.new("RGB", (64, 64)))
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]


def test_first_patch_is_the_top_left_corner_normalised_and_doubled_in_time(checkpoints):
    image = Image.new("RGB", (256, 256), (255, 0, 51))
    inputs = _inputs(load_processor(checkpoints["qwen3_vl"], 65_536, 131_072), image)
    patch = inputs["pixel_values"][0].reshape(3, 2, 16, 16)
    expected = torch.tensor([1.0, -1.0, -0.6]).view(3, 1, 1, 1).expand_as(patch)
    torch.testing.assert_close(patch, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_processor_reopens_with_equal_inputs(checkpoints, screenshot, tmp_path, family):
    processor = load_processor(checkpoints[family], 65_536, 131_072)
    save_processor(processor, tmp_path / "saved")
    before, after = (_inputs(p, screenshot) for p in (processor, load_processor(tmp_path / "saved", 65_536, 131_072)))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(
    ("family", "processor_class", "video_class"),
    [
        ("qwen3_vl", "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        ("qwen2_5_vl", "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    ],
)
def test_saved_folder_names_the_classes_that_auto_processor_knows(
    checkpoints, tmp_path, family, processor_class, video_class
):
    save_processor(load_processor(checkpoints[family], 65_536, 131_072), tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == processor_class
    assert saved["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    assert saved["video_processor"]["video_processor_type"] == video_class
    assert saved["image_processor"]["size"] == {"shortest_edge": 65_536, "longest_edge": 131_072}


def test_saved_llama4_processor_reopens_with_equal_inputs_and_the_official_class_names(tiny_checkpoints, tmp_path):
    processor = load_processor(tiny_checkpoints["llama4"], 1, 5 * 56**2)
    save_processor(processor, tmp_path)
    fields = json.loads((tmp_path / "processor_config.json").read_text())
    assert fields["processor_class"] == "Llama4Processor"
    assert fields["image_processor"]["image_processor_type"] == "Llama4ImageProcessor"
    assert fields["image_processor"]["max_patches"] == 5
    image = Image.effect_noise((320, 200), 60).convert("RGB")
    before, after = (
        p(text=["<|image|>Goal"], images=[image], return_tensors="pt")
        for p in (processor, load_processor(tmp_path, 1, 5 * 56**2))
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_video_settings_of_the_checkpoint_survive_saving_twice(checkpoints, tmp_path):
    original = json.loads((checkpoints["qwen3_vl"] / "video_preprocessor_config.json").read_text())
    for source, target in ((checkpoints["qwen3_vl"], tmp_path / "1"), (tmp_path / "1", tmp_path / "2")):
        save_processor(load_processor(source, 65_536, 131_072), target)
    assert json.loads((tmp_path / "2" / "processor_config.json").read_text())["video_processor"] == original


def test_min_and_max_pixels_of_an_older_config_are_overridden(checkpoints):
    assert "max_pixels" in json.loads((checkpoints["qwen2_5_vl"] / "preprocessor_config.json").read_text())
    processor = load_processor(checkpoints["qwen2_5_vl"], 10_000, 20_000)
    assert (processor.image_processor.size["shortest_edge"], processor.image_processor.size["longest_edge"]) == (
        10_000,
        20_000,
    )


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "outputs/deep/missing"])
def test_missing_folder_is_named(path):
    with pytest.raises(ValueError, match=r"found no such folder; expected a model folder"):
        load_processor(path, 65_536, 131_072)


def test_folder_without_processor_files_says_which_are_missing(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"found no processor_config.json or preprocessor_config.json"):
        load_processor(folder, 65_536, 131_072)


def test_the_revision_of_a_hub_model_is_the_one_that_is_opened(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = tmp_path / "models--owner--model"
    for revision in ("main", "v2"):
        folder = shutil.copytree(checkpoints["qwen3_vl"], hub / "snapshots" / f"{revision}-commit")
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / revision).write_text(folder.name)
        with (folder / "chat_template.jinja").open("a") as file:
            file.write(f"{{# template of {revision} #}}")
    for revision in ("main", "v2"):
        processor = load_processor("owner/model", 65_536, 131_072, revision)
        assert f"template of {revision}" in processor.chat_template


def test_unknown_family_lists_the_known_ones(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "preprocessor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    known = "Qwen3VLProcessor, Qwen2VLProcessor, Qwen2_5_VLProcessor, Llama4Processor"
    with pytest.raises(ValueError, match=f"'LlavaProcessor'; expected one of {known}: choose such a model"):
        load_processor(folder, 65_536, 131_072)


def test_broken_config_names_the_file(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config.json: found broken JSON"):
        load_processor(folder, 65_536, 131_072)


def test_checkpoint_without_chat_template_is_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"found no chat template"):
        load_processor(folder, 65_536, 131_072)


def test_folder_without_a_vocabulary_is_refused(checkpoints, tmp_path):
    """transformers opens one all the same, and encodes every text as no token at all."""
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"found no tokenizer.json; expected the model's tokenizer"):
        load_processor(folder, 65_536, 131_072)


@pytest.mark.parametrize("text", ['{"a": [1,}', '{"a": 1}'])
def test_tokenizer_that_cannot_be_opened_is_a_problem_of_the_folder(checkpoints, tmp_path, text):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="found no tokenizer that can be opened"):
        load_processor(folder, 65_536, 131_072)


def test_chat_template_that_is_not_utf8_is_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"chat_template.jinja: found bytes that are not UTF-8"):
        load_processor(folder, 65_536, 131_072)
