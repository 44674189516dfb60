"""Data out as chat data: the tokens that training sees, files that others load, and back again."""

import json
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories

from sft.batches.collator import PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows
from sft.convert import __main__ as convert
from sft.data.load import load_trajectories
from sft.data.screenshots import open_screenshot
from sft.errors import UserError
from sft.models.processors import load_processor

RECIPE = """\
min_pixels: 16384
max_pixels: 65536
memory_budget_chars: 400
max_prompt_tokens: {limit}
max_answer_tokens: 160
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of two tasks, and of a recipe of the tests' small budgets."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "recipe.yaml").write_text(RECIPE.format(limit=2048))
    return write_trajectories(folder, build_tasks(2))


def _export(source, out, *flags):
    convert.main(["to-messages", str(source), str(out), "--recipe", str(source.parent / "recipe.yaml"), *flags])
    return [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]


def _load(folder, name="data.jsonl"):
    """Load the rows as docs/convert.md says."""
    import datasets

    rows = datasets.load_dataset("json", data_files=str(folder / name), split="train", cache_dir=str(folder / "cache"))
    rows = rows.map(lambda row: {"images": [f"{folder}/{image}" for image in row["images"]]})
    return rows.cast_column("images", datasets.List(datasets.Image()))


def _as_published(folder):
    """Return the processor with the template as Qwen publishes it, by which TRL knows where answers are."""
    processor = load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    processor.chat_template = (files("trl") / "chat_templates/qwen3_vl.jinja").read_text(encoding="utf-8")
    return processor


def _collate_ours(csv_path, processor):
    """Return every step's batch of one row, as training makes it."""
    encoder = StepEncoder(processor, TINY_AGENT)
    rows = build_step_rows(load_trajectories(csv_path, show_progress=False), "data", encoder, show_progress=False)
    return [PaddingCollator(encoder)([row]) for row in rows.dataset]


def test_stock_trl_makes_of_every_row_the_tokens_labels_and_pixels_that_training_sees(
    data, tmp_path, tiny_checkpoints
):
    from trl.chat_template_utils import get_training_chat_template
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    _export(data, tmp_path / "out", "--tokenizer", str(tiny_checkpoints["qwen3_vl"]))
    processor = _as_published(tiny_checkpoints["qwen3_vl"])
    collator = DataCollatorForVisionLanguageModeling(
        processor, assistant_only_loss=True, chat_template=get_training_chat_template(processor)
    )
    ours = _collate_ours(data, processor)
    theirs = [collator([row]) for row in _load(tmp_path / "out")]
    assert len(ours) == len(theirs) == 6
    newline = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    for mine, other in zip(ours, theirs):  # the template writes a line's end behind the answer's turn
        assert other["input_ids"][0].tolist() == mine["input_ids"][0].tolist() + newline
        assert other["labels"][0].tolist() == mine["labels"][0].tolist() + newline
        assert np.array_equal(other["pixel_values"], mine["pixel_values"])
        assert np.array_equal(other["image_grid_thw"], mine["image_grid_thw"])


def test_sharegpt_rows_hold_the_same_text_with_the_picture_where_the_template_writes_it(
    data, tmp_path, tiny_checkpoints
):
    rows = _export(data, tmp_path / "out", "--format", "sharegpt")
    processor = load_processor(tiny_checkpoints["qwen3_vl"], TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)
    encoder = StepEncoder(processor, TINY_AGENT)
    trajectories = load_trajectories(data, show_progress=False)
    expected = build_step_rows(trajectories, "data", encoder, show_progress=False).dataset
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    picture = "<|vision_start|><|image_pad|><|vision_end|>"  # what LLaMA-Factory's qwen templates put for <image>
    for row, ours in zip(rows, expected):
        assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
        assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == len(row["images"]) == 1
        turns = [f"<|im_start|>{roles[t['from']]}\n{t['value']}<|im_end|>\n" for t in row["conversations"]]
        text = "".join(turns).replace("<image>", picture)
        assert text == f"{ours['prompt']}{ours['completion']}<|im_end|>\n"
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert info == {
        "clinical_gui": {
            "file_name": "data.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "images": "images"},
        }
    }


@pytest.mark.slow
def test_stock_trainer_of_trl_takes_a_step_on_the_rows(data, tmp_path, tiny_checkpoints):
    import torch
    from transformers import AutoModelForImageTextToText
    from trl import SFTConfig, SFTTrainer

    _export(data, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoints["qwen3_vl"], dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = SFTConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        assistant_only_loss=True,
        max_length=None,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=_load(tmp_path / "out"),
        processing_class=_as_published(tiny_checkpoints["qwen3_vl"]),
    )
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert any("language_model" in name for name in changed)


def test_rows_read_back_are_the_data_they_were_made_of(data, tmp_path):
    _export(data, tmp_path / "out")
    flags = ["--task_column", "task_id"]
    convert.main(["messages", str(tmp_path / "out/data.jsonl"), str(tmp_path / "back"), *flags])
    before, after = (load_trajectories(path, show_progress=False) for path in (data, tmp_path / "back/data.csv"))
    assert [(t.task_id, t.instruction, t.golds) for t in after] == [
        (t.task_id, t.instruction, t.golds) for t in before
    ]
    pixels = [[np.asarray(open_screenshot(s.image_path)).tobytes() for t in tasks for s in t.steps]
              for tasks in (before, after)]  # fmt: skip
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize("target", ["messages", "sharegpt"])
def test_goal_of_several_lines_is_read_back_whole(tmp_path, target):
    rows = build_tasks(1)
    for row in rows:
        row["Instruction"] = "Open the study\nTask: close it\n\nThen stop"
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=2048))
    _export(write_trajectories(tmp_path, rows), tmp_path / "out", "--format", target)
    convert.main(["messages", str(tmp_path / "out/data.jsonl"), str(tmp_path / "back"), "--task_column", "task_id"])
    (task,) = load_trajectories(tmp_path / "back/data.csv", show_progress=False)
    assert task.instruction == "Open the study\nTask: close it\n\nThen stop"


def test_each_screenshot_is_written_once_and_as_it_is_shown(tmp_path):
    source = write_trajectories(tmp_path, build_tasks(2))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=2048))
    turned = tmp_path / "screens/0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "screens/0.png").save(turned, exif=exif)
    source.write_text(source.read_text().replace("screens/0.png", "screens/0.jpg"))
    rows = _export(source, tmp_path / "out")
    names = sorted({name for row in rows for name in row["images"]})
    assert [f"images/{path.name}" for path in sorted((tmp_path / "out/images").iterdir())] == names
    assert len(names) == 2
    shown = [np.asarray(open_screenshot(tmp_path / "screens" / name)) for name in ("0.jpg", "1.png")]
    written = [np.asarray(Image.open(tmp_path / "out" / name).convert("RGB")) for name in names]
    assert {image.tobytes() for image in shown} == {image.tobytes() for image in written}


def test_memory_is_shortened_as_in_training_where_the_tokenizer_is_given(tmp_path, tiny_checkpoints):
    source = write_trajectories(tmp_path, build_tasks(2, n_steps=6))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=260))
    whole = _export(source, tmp_path / "whole")
    cut = _export(source, tmp_path / "cut", "--tokenizer", str(tiny_checkpoints["qwen3_vl"]))
    assert whole[0] == cut[0]  # a task's first memory is empty
    assert len(json.dumps(whole[5]["messages"])) > len(json.dumps(cut[5]["messages"]))


def test_goal_that_spells_out_a_picture_stands_for_none(tmp_path):
    rows = build_tasks(1)
    for row in rows:
        row["Instruction"] = "Compare <image> with <video>"
    source = write_trajectories(tmp_path, rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=2048))
    for row in _export(source, tmp_path / "out", "--format", "sharegpt"):
        (user,) = (turn["value"] for turn in row["conversations"] if turn["from"] == "human")
        assert user.count("<image>") == 1
        assert "Compare < image> with < video>" in user


def test_data_that_training_refuses_is_refused(tmp_path):
    rows = build_tasks(1)
    rows[0]["Output"] = '{"action": "CLICK", "target": "Search"}'
    source = write_trajectories(tmp_path, rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=2048))
    with pytest.raises(UserError, match="found no short_term and no long_term in the answer"):
        _export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    source = write_trajectories(tmp_path, [{**row, "Grounding": "{}"} for row in build_tasks(1)])
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(limit=2048) + "points: true\n")
    with pytest.raises(UserError, match="found no bbox for any action that has a target"):
        _export(source, tmp_path / "out")
