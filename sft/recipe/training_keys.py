"""Which keys of TRL's `SFTConfig` a recipe may set, and why not the others. Imports nothing of it.

A test holds that every field of the installed `SFTConfig` is in one of the tables, so that a new version is noticed.
"""

from collections.abc import Mapping
from typing import Any

_BATCHES = "which steps are one batch is decided by packing: see tokens_per_batch, or packing: none"
_ANSWERS_ONLY = "the loss is always on the answer only"
_NO_LOGITS = "an evaluation computes the loss and rolls the model out; no logits are gathered"
_LAUNCH = "how processes are started stands in accelerate_configs/"
_LEDGER = "the ledger in output_dir (compute_ledger.jsonl) has it in any case"

# Keys that act, by what they change; the tests try them family by family.
ACTING_KEYS: Mapping[str, tuple[str, ...]] = {
    "course": ("num_train_epochs", "max_steps", "gradient_accumulation_steps", "seed", "data_seed"),
    "optimiser": (
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "optim_target_modules",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
    ),
    "loss": ("label_smoothing_factor", "loss_type", "neftune_noise_alpha", "average_tokens_across_devices"),
    "batches without packing": ("per_device_train_batch_size", "per_device_eval_batch_size"),
    "arithmetic": ("bf16", "fp16", "tf32", "use_cpu", "full_determinism", "debug"),
    "memory": ("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
    "log": (
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
    ),
    "evaluation": ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    "checkpoints": ("output_dir", "save_strategy", "save_steps", "save_total_limit"),
    "choice": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "upload": ("push_to_hub", "hub_model_id", "hub_private_repo"),
    "loading": (
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    ),
    "processes": (
        "ddp_timeout",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
    ),
}

# Keys that would undo what this package guarantees, or that nothing here looks at, and the way out.
REFUSED_KEYS: Mapping[str, str] = {
    # what is trained on
    "max_length": "steps are never cut; bound them with max_prompt_tokens and max_answer_tokens",
    "truncation_mode": "steps are never cut",
    "completion_only_loss": _ANSWERS_ONLY,
    "assistant_only_loss": _ANSWERS_ONLY,
    "dataset_text_field": "the data is a trajectory CSV: train_csv",
    "dataset_kwargs": "the data is a trajectory CSV: train_csv",
    "dataset_num_proc": "steps are encoded as they are loaded: dataloader_num_workers",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "the labels are the answers' tokens",
    "eos_token": "the answer ends with the model's own end-of-turn token",
    "pad_token": "the model's own padding token is used",
    "chat_template_path": "the model's own chat template is used",
    "shuffle_dataset": "batches are drawn anew each epoch, from data_seed or else seed",
    # batches
    "packing_strategy": _BATCHES,
    "eval_packing": _BATCHES,
    "padding_free": "TRL refuses padding-free batches for vision data; packing has no padding either",
    "pad_to_multiple_of": "a packed sequence has no padding, and a padded batch is as long as its longest step",
    "train_sampling_strategy": _BATCHES,
    "length_column_name": _BATCHES,
    "dataloader_drop_last": "every step is trained on once an epoch",
    "dataloader_in_order": "batches come in one order, or a run would not resume as if nothing had happened",
    "dataloader_multiprocessing_context": "loaders are forked, so that they share the rows: dataloader_num_workers",
    "auto_find_batch_size": "lower tokens_per_batch, or without packing per_device_train_batch_size",
    "accelerator_config": f"{_BATCHES}; {_LAUNCH}",
    # model
    "model_init_kwargs": "use dtype, attn_implementation, model_revision",
    "trust_remote_code": "code that comes with a model is never run; choose a model of a supported family",
    "router_aux_loss_coef": f"a router of experts is frozen; {_ANSWERS_ONLY}",
    "use_cache": "training reads no cache",
    # speed and memory
    "activation_checkpointing": "use gradient_checkpointing, which TRL switches on by default",
    "activation_checkpointing_kwargs": "use gradient_checkpointing_kwargs",
    "activation_offloading": "use gradient_checkpointing, which TRL switches on by default",
    "torch_compile": "each batch has another length and mask, and would compile the model again: leave it out",
    "torch_compile_backend": "leave it out: see torch_compile",
    "torch_compile_mode": "leave it out: see torch_compile",
    "use_liger_kernel": "its kernels were not tried with packed masks, and TRL gives them up: leave it out",
    "liger_kernel_config": "leave it out: see use_liger_kernel",
    # evaluation
    "prediction_loss_only": _NO_LOGITS,
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "eval_accumulation_steps": _NO_LOGITS,
    "include_for_metrics": _NO_LOGITS,
    "batch_eval_metrics": _NO_LOGITS,
    "bf16_full_eval": "an evaluation runs within training, in its arithmetic: bf16",
    "fp16_full_eval": "an evaluation runs within training, in its arithmetic: fp16",
    # checkpoints
    "save_only_model": "a run cannot resume from weights alone; save_total_limit keeps checkpoints few",
    "save_on_each_node": "checkpoints are written once, to an output_dir that every node sees",
    "enable_jit_checkpoint": "after SIGTERM or SIGUSR1 a run always saves first",
    "resume_from_checkpoint": "use resume: auto, or resume: PATH",
    "ignore_data_skip": "a run resumes at the batch it stopped at",
    "restore_callback_states_from_checkpoint": "a resumed run always counts on where it stopped",
    # upload
    "hub_token": "a recipe is saved with the model; log in with `hf auth login` or set HF_TOKEN",
    "hub_strategy": "the model is uploaded once, when it is saved",
    "hub_always_push": "the model is uploaded once, when it is saved",
    "hub_revision": "the model is uploaded to the main branch",
    # processes
    "deepspeed": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "parallelism_config": _LAUNCH,
    "local_rank": "accelerate launch sets it",
    "ddp_backend": "it follows from the hardware: NCCL on GPUs, gloo on CPUs",
    # measurement and scripts
    "include_num_input_tokens_seen": f"num_tokens is logged, and {_LEDGER}",
    "skip_memory_metrics": _LEDGER,
    "do_train": "sft/run.py trains: leave it out",
    "do_eval": "use eval_strategy",
    "do_predict": "use eval/rollout.py",
}

# What is set in any case, whatever the default: a recipe that asks for the same is not refused.
FIXED_KEYS: Mapping[str, Any] = {
    "max_length": None,
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "prediction_loss_only": True,
    "restore_callback_states_from_checkpoint": True,  # or early stopping would count anew after a resume
    "router_aux_loss_coef": 0.0,
}


def find_key_problem(key: str, value: Any, default: Any) -> str | None:
    """Return why a key of `SFTConfig` is refused, or None where it acts or asks for nothing but what is done anyway.

    `default` is that of `SFTConfig`.
    """
    usual = FIXED_KEYS.get(key, default)
    if key in REFUSED_KEYS:
        is_usual = value == usual and isinstance(value, bool) == isinstance(usual, bool)
        return None if is_usual else f"{key}: found a key that does not apply here; {REFUSED_KEYS[key]}"
    if not any(key in keys for keys in ACTING_KEYS.values()):
        return f"{key}: found a key of TRL's that was not tried with this package; expected none: leave it out"
    return None
