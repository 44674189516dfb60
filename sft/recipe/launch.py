"""Which ways of starting processes fit which recipes; the rest is refused before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from sft.errors import UserError
from sft.recipe.settings import ModelSettings

# With these accelerate (1.15, `map_pytorch_optim_to_deepspeed`) computes the same steps by DeepSpeedCPUAdam.
OFFLOADED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
_OFFLOADED = ("OPTIMIZER", "PARAM")


@dataclass(frozen=True)
class Launch:
    """How `accelerate launch` started this process: `engine` is single, ddp, zero2, zero3 or one that is refused.

    `offload` is where ZeRO keeps the optimiser's state, and in ZeRO-3 the weights: none, cpu or one that is refused.
    """

    engine: str
    n_processes: int
    offload: str = "none"


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read from the variables that `accelerate launch` and `torchrun` set how many processes work together and how."""
    n_processes = int(environment.get("WORLD_SIZE", "1"))
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
            return Launch("deepspeed_config_file", n_processes)  # which holds what the variables would say
        devices = {environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in _OFFLOADED}
        offload = " and ".join(sorted(devices - {"none"})) or "none"
        return Launch(f"zero{environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}", n_processes, offload)
    for engine in ("FSDP", "MEGATRON_LM"):
        if environment.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            return Launch(engine, n_processes)
    return Launch("ddp" if n_processes > 1 else "single", n_processes)


def check_support(launch: Launch, model: ModelSettings, has_checkpointing: bool, optim: str) -> None:
    """Refuse what is known not to work; the README's table has every combination.

    Raises:
        UserError: every reason, each with the way out.
    """
    problems = []
    if launch.engine not in ("single", "ddp", "zero2", "zero3"):
        problems.append(
            f"found {launch.engine}; expected one of accelerate_configs/ (one process, DDP, ZeRO-2, ZeRO-3)"
        )
    if launch.engine == "zero3":
        if model.load_in_4bit and model.dtype != "bfloat16":
            problems.append(
                f"load_in_4bit: found dtype {model.dtype} under ZeRO-3, which can only cut 4-bit weights stored as "
                "bf16; expected dtype: bfloat16, load_in_4bit: false, or ZeRO-2"
            )
        if model.load_in_4bit and (model.lora_parts != ("language",) or model.lora_modules_to_save):
            problems.append(
                f"lora_parts: found {', '.join((*model.lora_parts, *model.lora_modules_to_save))} with load_in_4bit "
                "under ZeRO-3; expected language alone, load_in_4bit: false, or ZeRO-2"
            )
        if model.use_peft and "vision" in model.lora_parts and has_checkpointing:
            problems.append(
                "lora_parts: found vision with gradient_checkpointing under ZeRO-3, where TRL checkpoints reentrantly "
                "and the vision tower gets no gradient; expected gradient_checkpointing: false, or ZeRO-2"
            )
    if launch.offload not in ("none", "cpu"):
        problems.append(f"offload: found {launch.offload}; expected cpu or none in the accelerate configuration")
    if launch.offload != "none" and optim not in OFFLOADED_OPTIMIZERS:
        problems.append(
            f"optim: found {optim} under ZeRO with offload, which would put DeepSpeed's own optimiser in its place, "
            f"for most a 32-bit Adam; expected {' or '.join(OFFLOADED_OPTIMIZERS)}, or no offload"
        )
    if problems:
        raise UserError("\n".join(problems))
