"""The published models' own configs, chat templates and tokenizer give what the package reckons with."""

import json
import shutil
from dataclasses import asdict
from importlib.util import find_spec

import pytest
import torch
from conftest import DEMO_FILES, ROOT, load_demo
from test_encoder import _Rollout
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from eval.policies.decoding import read_end_ids
from eval.predictor import load_model_for_inference
from eval.rollouts.walk import walk_tasks
from sft.answers import format_answer
from sft.batches.collator import PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_examples, build_step_rows
from sft.batches.packing import IGNORED_LABEL
from sft.data.screenshots import open_screenshot
from sft.memory import EMPTY_MEMORY
from sft.models.chat_template import read_chat_template
from sft.models.model_folder import read_dtype
from sft.models.processors import load_processor, save_processor
from sft.models.token_counts import build_image_counter
from sft.recipe.recipe import load_agent_settings
from sft.run import print_plan

if find_spec("dashscope") is None:
    pytest.skip("found no package dashscope, which ships Qwen's BPE: pip install dashscope", allow_module_level=True)

from benchmarks.real_models import TEMPLATES, read_template, write_real_folders

pytestmark = pytest.mark.slow

RECIPES = {"qwen3_vl": ROOT / "recipes/qwen3vl.yaml", "qwen2_5_vl": ROOT / "recipes/qwen2_5vl.yaml"}
# Image tokens at the recipe's budget, by hand: Qwen3-VL has 32 pixels a side and token, Qwen2.5-VL 28.
IMAGE_TOKENS = {
    "qwen3_vl": {(1280, 720): 40 * 22, (1280, 800): 40 * 25, (1920, 1080): 47 * 26},
    "qwen2_5_vl": {(1280, 720): 46 * 26, (1280, 800): 45 * 28, (1920, 1080): 47 * 26},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return write_real_folders(tmp_path_factory.mktemp("published"))


@pytest.fixture(params=RECIPES)
def family(request):
    return request.param


@pytest.fixture
def folder(folders, family):
    return folders[family]


@pytest.fixture(scope="session")
def encoders(folders):
    """Both folders opened as training opens them, once: the tokenizer takes seconds."""
    agents = {family: load_agent_settings(path) for family, path in RECIPES.items()}
    return {
        family: StepEncoder(load_processor(folders[family], agent.min_pixels, agent.max_pixels), agent)
        for family, agent in agents.items()
    }


@pytest.fixture
def encoder(encoders, family):
    return encoders[family]


@pytest.fixture(scope="session")
def demo_tasks():
    """One task of the demo."""
    return load_demo(ROOT / "demo/data/val.csv")[:1]


def test_special_tokens_have_their_published_ids(folder, encoder):
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    expected = [151643, 151644, 151645, 151652, 151653, 151655]
    assert encoder.tokenizer.convert_tokens_to_ids(list(names)) == expected
    assert (encoder.tokenizer.eos_token_id, encoder.tokenizer.pad_token_id) == (151645, 151643)
    assert encoder.processor.image_token_id == AutoConfig.from_pretrained(folder).image_token_id == 151655


def test_tokenizer_is_qwens(encoder):
    """Ids as the published tokenizer gives them, for words, digits one by one, and another script."""
    encode = encoder.tokenizer
    assert encode("Hello world", add_special_tokens=False)["input_ids"] == [9707, 1879]
    assert encode("204", add_special_tokens=False)["input_ids"] == [17, 15, 19]
    assert encode("user", add_special_tokens=False)["input_ids"] == [872]
    assert encode("你好", add_special_tokens=False)["input_ids"] == [108386]


def test_training_rollout_check_and_official_template_read_the_same_ids(family, encoder, demo_tasks, monkeypatch):
    official = encoder.tokenizer
    rollout = _Rollout(demo_tasks, encoder, monkeypatch)
    list(walk_tasks(demo_tasks, rollout, encoder.agent, "teacher", batch_size=4))
    rows = list(build_step_rows(demo_tasks, "val.csv", encoder, show_progress=False).dataset)
    checked = list(build_examples(demo_tasks, encoder.agent, ROOT, encoder))
    assert len(rows) == len(checked) == sum(len(task.steps) for task in demo_tasks)
    template = read_template(TEMPLATES[family][0])
    for row, example in zip(rows, checked):
        assert (row["task_id"], row["step"]) == (example.task_id, example.step.index)
        text = official.apply_chat_template(
            example.messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        image = open_screenshot(example.step.image_path)
        expected = list(encoder.processor(text=[text], images=[image])["input_ids"][0])
        batch = PaddingCollator(encoder)([row])
        n_prompt = int((batch["labels"][0] != IGNORED_LABEL).nonzero()[0])
        assert batch["input_ids"][0, :n_prompt].tolist() == expected
        assert list(rollout.steps[row["task_id"], row["step"]].ids) == expected
        assert row["prompt"] == text
        assert example.n_prompt_tokens == len(expected)


def test_answers_end_as_the_official_template_ends_them(family, encoder, demo_tasks):
    official = encoder.tokenizer
    step = demo_tasks[0].steps[0]
    prompt = encoder.build_prompt(demo_tasks[0].instruction, EMPTY_MEMORY, step.image_path)
    answer = format_answer(step.gold, encoder.agent)
    turns = [*prompt.messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = official.apply_chat_template(turns, chat_template=read_template(TEMPLATES[family][0]), tokenize=False)
    taught = official.decode(encoder.encode_completion(answer))
    assert text == prompt.text + taught + "\n"


def test_image_tokens_of_common_screens(folder, family, encoder):
    real, count = encoder.processor, build_image_counter(folder, encoder.agent)
    for (width, height), expected in IMAGE_TOKENS[family].items():
        counted = real._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens[0]
        assert counted == count(width, height) == expected, (width, height)


def test_steps_of_the_demo_are_within_the_recipes_limits(encoder):
    agent = encoder.agent
    tasks = [task for path in DEMO_FILES for task in load_demo(path)]
    assert len(tasks) > 100
    answers = {format_answer(step.gold, agent) for task in tasks for step in task.steps}
    assert max(len(encoder.encode_completion(answer)) for answer in answers) <= agent.max_answer_tokens // 2
    examples = list(build_examples(tasks[:: len(tasks) // 20], agent, ROOT, encoder))
    assert [p.problems for p in examples if p.problems] == []
    assert max(p.n_prompt_tokens for p in examples) <= agent.max_prompt_tokens


def test_plan_of_the_recipe_is_made_from_the_folder_without_weights(folder, family, tmp_path, capsys):
    lines = (ROOT / "demo/data/val.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    csv = tmp_path / "few.csv"
    first = lines[1].split(",")[0]
    csv.write_text("".join([lines[0], *(line for line in lines[1:] if line.startswith(f"{first},"))]))
    arguments = ["--model_name_or_path", str(folder), "--train_csv", str(csv), "--val_csv", "null"]
    arguments += ["--eval_strategy", "no", "--eval_on_start", "false"]
    arguments += ["--load_best_model_at_end", "false", "--metric_for_best_model", "loss"]
    arguments += ["--val_rollout_tasks", "0", "--image_root", str(ROOT / "demo/data"), "--card_gb=40"]
    print_plan([str(RECIPES[family]), *arguments])
    plan = capsys.readouterr().out
    assert "of 40: fits" in plan
    # 8.77 and 8.29 billion parameters as published: most of the language part is in nf4
    (nf4,) = (float(line.split()[-1]) for line in plan.splitlines() if "language, nf4" in line)
    assert nf4 == pytest.approx({"qwen3_vl": 3.58, "qwen2_5_vl": 3.37}[family], abs=0.02)


def test_vision_template_wins_and_is_the_only_one_that_is_saved(folder, family, encoder, tmp_path):
    of_vision, of_text = map(read_template, TEMPLATES[family])
    assert (of_vision == of_text) == (family == "qwen3_vl")
    assert read_chat_template(folder) == of_vision
    save_processor(encoder.processor, tmp_path)
    assert read_chat_template(tmp_path) == of_vision
    load_processor(tmp_path, encoder.agent.min_pixels, encoder.agent.max_pixels)


@pytest.fixture
def shrunk(folder, family, tmp_path):
    """The published folder with a model of few parameters: real vocabulary and files, bf16 weights, small widths."""
    small = shutil.copytree(folder, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    text = config.get("text_config", config)
    text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 16} if "head_dim" in text else {"num_key_value_heads": 1}
    scaling = text["rope_scaling"]
    scaling["mrope_section"] = [4, 2, 2]
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    last = {"deepstack_visual_indexes": [0]} if family == "qwen3_vl" else {"fullatt_block_indexes": [1]}
    config["vision_config"] |= {**vision, **last}
    (small / "config.json").write_text(json.dumps(config))
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(small)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").glob("*.safetensors"):
        shutil.copy(path, small)
    return small


def test_untuned_base_is_loaded_in_its_own_format_and_answers_greedily(shrunk, encoder, demo_tasks, tmp_path):
    """Its published `generation_config.json` samples, with a temperature and a penalty; no answer depends on it.

    Of that file only the two ends of an answer count, `<|im_end|>` and `<|endoftext|>`.
    """
    config = json.loads((shrunk / "config.json").read_text())
    assert "dtype" not in config, "the published configs have it elsewhere"
    assert read_dtype(shrunk) == "bfloat16"
    generation = GenerationConfig.from_pretrained(shrunk)
    assert generation.do_sample and generation.eos_token_id == [151645, 151643]
    path = tmp_path / "agent_config.json"
    path.write_text(json.dumps({**asdict(encoder.agent), "max_answer_tokens": 6}))
    predictor = load_model_for_inference(shrunk, agent_config=path)
    model = predictor.policy.model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert set(read_end_ids(model)) == {151645, 151643}
    step, goal = demo_tasks[0].steps[0], demo_tasks[0].instruction
    texts = {predictor.predict_step(step.image_path, goal).raw_text for _ in range(3)}
    (shrunk / "generation_config.json").write_text(json.dumps({"eos_token_id": generation.eos_token_id}))
    texts |= {load_model_for_inference(shrunk, agent_config=path).predict_step(step.image_path, goal).raw_text}
    assert len(texts) == 1
