"""What a recipe can set beside TRL's own keys: data, model, batches, validation, resume. Knows nothing of files."""

from dataclasses import dataclass, field
from typing import Literal

Purpose = Literal["training", "hyperparameter_search", "ablation", "inference", "other"]  # of a run, in the ledger


@dataclass(frozen=True)
class DataSettings:
    """Where the trajectories are and which of them are trained on."""

    train_csv: str = field(metadata={"help": "Trajectory CSV to train on, or a data set of `datasets`."})
    val_csv: str | None = field(default=None, metadata={"help": "Trajectory CSV to validate on."})
    val_split: float = field(
        default=0.0, metadata={"help": "Without val_csv: share of the tasks of train_csv that is held out, by task."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the screenshots [folder of the CSV]."})
    on_bad_rows: Literal["refuse", "quarantine"] = field(
        default="refuse", metadata={"help": "Refuse a file with a bad row, or set its tasks with one aside whole."}
    )
    allow_overlap: bool = field(
        default=False, metadata={"help": "Validate on tasks of val_csv whose goals are trained on too."}
    )
    screenshot_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps resized screenshots between epochs and runs [none]."}
    )
    task_start: int = field(default=0, metadata={"help": "First task of train_csv, by position in natural order."})
    task_end: int | None = field(default=None, metadata={"help": "Position after the last task of train_csv."})


@dataclass(frozen=True)
class ModelSettings:
    """Which model is fine-tuned and how. Names are those of TRL's ModelConfig."""

    model_name_or_path: str = field(metadata={"help": "Local folder or Hub id of the base model."})
    model_revision: str = field(default="main", metadata={"help": "Hub revision of the base model."})
    dtype: Literal["bfloat16", "float16", "float32"] = field(
        default="bfloat16", metadata={"help": "Number format of the weights and of 4-bit arithmetic."}
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = field(
        default="sdpa", metadata={"help": "Attention implementation."}
    )
    load_in_4bit: bool = field(default=True, metadata={"help": "Quantise the language layers to nf4 (QLoRA)."})
    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter; false trains every parameter."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the LoRA input."})
    lora_parts: tuple[Literal["language", "experts", "merger", "vision"], ...] = field(
        default=("language",),
        metadata={"help": "Parts of the model that get LoRA matrices; experts in mixtures only."},
    )
    lora_modules_to_save: tuple[str, ...] = field(
        default=(), metadata={"help": "Modules trained in full and saved with the adapter, e.g. embed_tokens."}
    )


@dataclass(frozen=True)
class BatchSettings:
    """How steps become batches."""

    packing: Literal["shared_screenshot", "none"] = field(
        default="shared_screenshot",
        metadata={"help": "Hold what several steps share once in one sequence, or pad each step on its own."},
    )
    loss_weights: dict[Literal["action", "target", "memory"], float] = field(
        default_factory=dict, metadata={"help": "Weight of each answer field's tokens in the loss [1.0 each]."}
    )
    tokens_per_batch: int = field(
        default=4096, metadata={"help": "Most tokens of a packed sequence, images included."}
    )


@dataclass(frozen=True)
class ValidationSettings:
    """The own-memory rollout on validation tasks that runs at each evaluation."""

    val_rollout_tasks: int = field(
        default=16, metadata={"help": "Validation tasks rolled out at each evaluation; 0 switches it off."}
    )
    val_rollout_batch_size: int = field(default=16, metadata={"help": "Tasks answered at once in that rollout."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )


@dataclass(frozen=True)
class ComputeSettings:
    """What the compute ledger notes of a run."""

    run_purpose: Purpose = field(
        default="training", metadata={"help": "What the run is for, in the compute report's breakdown."}
    )
    country_iso_code: str | None = field(
        default=None, metadata={"help": "Where the run takes place, e.g. DEU: needed for CO2e [energy alone]."}
    )


@dataclass(frozen=True)
class ResumeSettings:
    """Whether a run goes on from a checkpoint."""

    resume: str | None = field(
        default=None,
        metadata={"help": "auto: the newest whole checkpoint of output_dir, or step 0 without one; or a checkpoint."},
    )
    resume_anyway: bool = field(
        default=False, metadata={"help": "Go on though recipe or data have changed; the changes are logged."}
    )
