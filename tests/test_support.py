"""What does not work together is refused before a model is loaded; configurations leave the recipe its own."""

import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from training_runs import write_recipe

from sft.errors import UserError
from sft.recipe.launch import Launch, check_support, read_launch
from sft.recipe.settings import ModelSettings

CONFIGS = {path.stem: path for path in sorted((ROOT / "accelerate_configs").glob("*.yaml"))}
QLORA, LORA = ModelSettings("m"), ModelSettings("m", load_in_4bit=False)


@pytest.mark.parametrize(
    ("engine", "model", "checkpointing", "message"),
    [
        ("single", ModelSettings("m", dtype="float32", lora_parts=("vision",)), True, None),
        ("ddp", ModelSettings("m", lora_parts=("language", "vision")), True, None),
        ("zero2", ModelSettings("m", dtype="float32", lora_parts=("vision",)), True, None),
        ("zero3", QLORA, True, None),
        ("zero3", ModelSettings("m", dtype="float32", load_in_4bit=False), True, None),
        ("zero3", ModelSettings("m", load_in_4bit=False, lora_parts=("language", "vision")), False, None),
        ("ddp", ModelSettings("m", load_in_4bit=False, use_peft=False), True, None),
        ("zero2", ModelSettings("m", load_in_4bit=False, use_peft=False), True, None),
        ("zero3", ModelSettings("m", load_in_4bit=False, use_peft=False), True, None),
        ("zero3", ModelSettings("m", dtype="float32"), True, "found dtype float32 under ZeRO-3.*bfloat16"),
        (
            "zero3",
            ModelSettings("m", lora_parts=("language", "merger")),
            True,
            "found language, merger with load_in_4bit",
        ),
        (
            "zero3",
            ModelSettings("m", lora_parts=("language", "experts")),
            True,
            "found language, experts with load_in_4bit under ZeRO-3; expected language alone",
        ),
        (
            "zero3",
            ModelSettings("m", lora_modules_to_save=("lm_head",)),
            True,
            "found language, lm_head with load_in_",
        ),
        (
            "zero3",
            ModelSettings("m", load_in_4bit=False, lora_parts=("vision",)),
            True,
            "found vision with gradient_ch",
        ),
        ("zero3", LORA, "selective", "gradient_checkpointing: found selective under ZeRO-3"),
        ("zero3", LORA, "auto", None),
        ("zero2", QLORA, "selective", None),
        ("zero1", QLORA, True, "found zero1; expected one of accelerate_configs/"),
        ("FSDP", LORA, True, "found FSDP; expected one of accelerate_configs/"),
    ],
)
def test_combination_is_taken_or_refused_with_the_reason(engine, model, checkpointing, message):
    launch = Launch(engine, 2)
    if message is None:
        check_support(launch, model, checkpointing, "adamw_torch")
    else:
        with pytest.raises(UserError, match=message):
            check_support(launch, model, checkpointing, "adamw_torch")


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2"])
def test_vision_outputs_are_kept_where_each_process_has_the_whole_tower(engine):
    check_support(Launch(engine, 2), QLORA, True, "adamw_torch", keeps_vision=True)
    with pytest.raises(UserError, match="vision_cache_gb: found under ZeRO-3.*null, or ZeRO-2"):
        check_support(Launch("zero3", 2), LORA, True, "adamw_torch", keeps_vision=True)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "paged_adamw_8bit", "adamw_8bit", "sgd"])
def test_offload_takes_torchs_adamw_alone(engine, optim):
    """Any other would be replaced without a word: accelerate makes Adam of 8-bit AdamW and of SGD."""
    check_support(Launch(engine, 2), LORA, False, optim)
    if optim.startswith("adamw_torch"):
        check_support(Launch(engine, 2, "cpu"), LORA, False, optim)
    else:
        with pytest.raises(UserError, match=f"optim: found {optim} under ZeRO with offload.*expected adamw_torch or"):
            check_support(Launch(engine, 2, "cpu"), LORA, False, optim)


def test_offload_elsewhere_than_to_the_cpu_is_refused():
    with pytest.raises(UserError, match="offload: found cpu and nvme; expected cpu or none"):
        check_support(Launch("zero3", 2, "cpu and nvme"), LORA, False, "adamw_torch")


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, Launch("single", 1)),
        ({"WORLD_SIZE": "4"}, Launch("ddp", 4)),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "WORLD_SIZE": "8"},
            Launch("zero3", 8),
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none"},
            Launch("zero2", 1),
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            Launch("zero2", 1, "cpu"),
        ),
        (
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme",
            },
            Launch("zero3", 1, "cpu and nvme"),
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"},
            Launch("deepspeed_config_file", 1),
        ),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, Launch("FSDP", 2)),
    ],
)
def test_launch_is_read_from_what_accelerate_and_torchrun_set(variables, launch):
    assert read_launch(variables) == launch


@pytest.mark.slow
def test_refusal_comes_before_the_model_is_loaded(tiny_checkpoints, tmp_path):
    """The weights are damaged, and are never looked into."""
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_checkpoints["qwen3_vl"].iterdir():
        (base / path.name).write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    recipe = write_recipe(tmp_path, base)
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "WORLD_SIZE": "1"}
    variables |= {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    command = [sys.executable, "sft/run.py", str(recipe), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "load_in_4bit: found dtype float32 under ZeRO-3" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_way_to_start_has_its_configuration():
    gpu = {"single_gpu", "multi_gpu", "zero2", "zero3", "zero3_offload", "multi_node_zero3"}
    assert set(CONFIGS) == gpu | {"cpu", "cpu_zero2", "cpu_zero3"}


@pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)
def test_configuration_says_when_to_use_it_and_leaves_the_recipe_its_own(path):
    text = path.read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    settings = {**values, **values.get("deepspeed_config", {})}
    assert not [key for key in settings if "accumulation" in key or "clipping" in key]
    assert values["num_processes"] == 1 or values["distributed_type"] != "NO"
    on_cpu = path.stem.startswith("cpu")
    assert values["mixed_precision"] == ("no" if on_cpu else "bf16")
