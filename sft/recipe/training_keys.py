"""Which keys of TRL's `SFTConfig` a recipe may set, and why not the others. Imports nothing of it.

A test holds that every field of the installed `SFTConfig` is in one of the tables, with its type and default, so that
a new version is noticed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from sft.recipe.settings import Key

_BATCHES = "packing decides which steps are in one batch: see tokens_per_batch, or packing: none"
_ANSWERS_ONLY = "the loss is always on the answer only"
_NO_LOGITS = "an evaluation computes the loss and rolls out the model; it gathers no logits"
_LAUNCH = "accelerate_configs/ says how processes are started"
_LEDGER = "compute_ledger.jsonl in output_dir always records it"

_MOST_SEED = 2**32 - 1  # NumPy's
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")  # of transformers
_DebugOption = Literal["underflow_overflow", "tpu_metrics_debug"]
_STEPS_OR_SHARE = "a number, or below 1 a share of all steps"
_STRATEGIES = ("no", "steps", "epoch")

# Keys that act, by what they change; the tests try them family by family.
ACTING_KEYS: Mapping[str, tuple[Key, ...]] = {
    "length of the training": (
        Key("num_train_epochs", float, 3.0, "How many times each step is trained on.", above=0),
        Key("max_steps", int, -1, "Optimiser steps of the training.", least=1, otherwise="-1 for num_train_epochs"),
        Key("gradient_accumulation_steps", int, 1, "Batches per process in one optimiser step.", least=1),
        Key("seed", int, 42, "Seed of every random choice.", least=0, most=_MOST_SEED),
        Key(
            "data_seed",
            int | None,
            None,
            "Seed of the order of steps; null: the same as seed.",
            least=0,
            most=_MOST_SEED,
        ),
    ),
    "optimiser": (
        Key("learning_rate", float, 2e-5, "Highest learning rate, reached after the warm-up.", least=0),
        Key(
            "lr_scheduler_type",
            str,
            "linear",
            "Schedule of the learning rate: linear, cosine, constant_with_warmup and others.",
        ),
        Key(
            "lr_scheduler_kwargs",
            dict | str | None,
            None,
            "Settings of that schedule, such as {min_lr_rate: 0.1} for cosine_with_min_lr.",
        ),
        Key("warmup_steps", float, 0, f"Steps of the warm-up: {_STEPS_OR_SHARE}.", least=0),
        Key(
            "optim",
            str,
            "adamw_torch_fused",
            "Optimiser: adamw_torch_fused, adamw_torch, paged_adamw_8bit, sgd, adafactor and others.",
        ),
        Key("optim_args", str | None, None, "Further settings of the optimiser: key=value, separated by commas."),
        Key(
            "optim_target_modules",
            None | str | list[str],
            None,
            "Modules for a GaLore or APOLLO optimiser.",
        ),
        Key("weight_decay", float, 0.0, "Weight decay.", least=0),
        Key("adam_beta1", float, 0.9, "Adam: decay of the first moment.", is_share=True),
        Key("adam_beta2", float, 0.999, "Adam: decay of the second moment.", is_share=True),
        Key("adam_epsilon", float, 1e-8, "Adam: added to the denominator.", least=0),
        Key("max_grad_norm", float, 1.0, "Gradients are scaled down to this norm; 0: never.", least=0),
    ),
    "loss": (
        Key(
            "label_smoothing_factor",
            float,
            0.0,
            "Share of the probability that is spread over all tokens.",
            least=0,
            most=1,
        ),
        Key("loss_type", str, "nll", "Negative log-likelihood, or dynamic fine-tuning (dft).", among=("nll", "dft")),
        Key(
            "neftune_noise_alpha",
            float | None,
            None,
            "Strength of the noise on embeddings (NEFTune); null: none.",
            above=0,
        ),
        Key("average_tokens_across_devices", bool, True, "Average the loss over the tokens of all processes."),
    ),
    "batches without packing": (
        Key(
            "per_device_train_batch_size",
            int,
            8,
            "Steps per batch and process, with packing: none only.",
            least=1,
        ),
        Key(
            "per_device_eval_batch_size",
            int,
            8,
            "The same, for validation; unless set, as for training.",
            least=1,
        ),
    ),
    "arithmetic": (
        Key("bf16", bool | None, None, "Mixed precision in bf16; null: yes, unless fp16 is true or dtype is float32."),
        Key("fp16", bool, False, "Mixed precision in fp16, on a GPU."),
        Key("tf32", bool | None, None, "TF32 arithmetic on Ampere and newer GPUs."),
        Key("use_cpu", bool, False, "Train on the CPU."),
        Key("full_determinism", bool, False, "Use deterministic kernels, which are slower."),
        Key("debug", str | list[_DebugOption], "", "underflow_overflow reports where numbers overflow."),
    ),
    "memory": (
        Key(
            "gradient_checkpointing",
            bool | Literal["selective", "auto"],
            True,
            "Compute activations again in the backward pass: less memory, more time. selective keeps the outputs of "
            "attention and of the model's own matrix products; auto takes the fastest of the three that fits the "
            "GPU's memory by --plan's estimate, on a CPU false.",
        ),
        Key(
            "gradient_checkpointing_kwargs",
            dict[str, Any] | str | None,
            None,
            "Settings of torch's checkpointing, such as {use_reentrant: false}.",
        ),
        Key(
            "torch_empty_cache_steps",
            int | None,
            None,
            "Steps between releases of cached GPU memory; null: never.",
            least=1,
        ),
    ),
    "log": (
        Key("logging_strategy", str, "steps", "When to log.", among=_STRATEGIES),
        Key("logging_steps", float, 10, f"Steps between logs: {_STEPS_OR_SHARE}.", above=0),
        Key("logging_first_step", bool, False, "Log the first step too."),
        Key("logging_nan_inf_filter", bool, True, "Leave losses that are not finite out of the logged mean."),
        Key("log_on_each_node", bool, True, "Log on each machine, or on the first only."),
        Key("log_level", str, "passive", "Lowest level that transformers logs.", among=_LOG_LEVELS),
        Key("log_level_replica", str, "warning", "The same, for processes other than the first.", among=_LOG_LEVELS),
        Key("disable_tqdm", bool | None, None, "Show no progress bar."),
        Key(
            "report_to",
            None | str | list[str],
            "none",
            "Trackers: none, tensorboard, wandb, mlflow, trackio, or others.",
        ),
        Key("run_name", str | None, None, "Name of the run in trackers."),
        Key("project", str, "huggingface", "trackio: name of the project."),
        Key("trackio_space_id", str | None, None, "trackio: Space on the Hub that shows the run."),
        Key("trackio_bucket_id", str | None, None, "trackio: bucket on the Hub that holds the run."),
        Key(
            "trackio_static_space_id",
            str | None | Literal[False],
            None,
            "trackio: static Space on the Hub; false: none.",
        ),
    ),
    "evaluation": (
        Key("eval_strategy", str, "no", "When to evaluate on the validation tasks.", among=_STRATEGIES),
        Key(
            "eval_steps",
            float | None,
            None,
            f"Steps between evaluations: {_STEPS_OR_SHARE}; null: logging_steps.",
            above=0,
        ),
        Key("eval_delay", float, 0, "Steps or epochs (as eval_strategy) before the first evaluation.", least=0),
        Key("eval_on_start", bool, False, "Evaluate before the first step too, which scores the base model."),
    ),
    "checkpoints": (
        Key(
            "output_dir",
            str | None,
            None,
            "Folder for everything the training writes; null: trainer_output.",
            is_filled=True,
        ),
        Key("save_strategy", str, "steps", "When to save a checkpoint.", among=(*_STRATEGIES, "best")),
        Key("save_steps", float, 500, f"Steps between checkpoints: {_STEPS_OR_SHARE}.", above=0),
        Key(
            "save_total_limit",
            int | None,
            None,
            "How many checkpoints to keep, newest first, the best one always; null: all.",
            least=1,
        ),
    ),
    "choice of the best checkpoint": (
        Key("load_best_model_at_end", bool, False, "Save the weights of the best evaluation, not the last ones."),
        Key(
            "metric_for_best_model",
            str | None,
            None,
            "What is best: loss, mean_token_accuracy, entropy, or of the rollout swa (action right) or swa_target "
            "(target too); null: loss.",
        ),
        Key("greater_is_better", bool | None, None, "Whether more of the metric is better; needed for entropy only."),
    ),
    "upload": (
        Key("push_to_hub", bool, False, "Upload the model to the Hub when training has ended."),
        Key(
            "hub_model_id", str | None, None, "Repository to upload to; null: named after output_dir.", is_filled=True
        ),
        Key("hub_private_repo", bool | None, None, "false makes the repository public; it is private otherwise."),
    ),
    "loading of data": (
        Key("dataloader_num_workers", int, 0, "Processes that load data; 0: the training process does.", least=0),
        Key("dataloader_pin_memory", bool, True, "Load into page-locked memory, which GPUs copy faster."),
        Key("dataloader_persistent_workers", bool, False, "Keep the loading processes from one epoch to the next."),
        Key("dataloader_prefetch_factor", int | None, None, "Batches that each loading process keeps ready.", least=1),
    ),
    "processes": (
        Key("ddp_timeout", int, 1800, "How long a process waits for another.", least=1, most=10**9, unit="seconds"),
        Key("ddp_find_unused_parameters", bool | None, None, "DDP: look for parameters without a gradient."),
        Key("ddp_bucket_cap_mb", int | None, None, "DDP: size of a bucket of gradients.", least=1, unit="MB"),
        Key("ddp_broadcast_buffers", bool | None, None, "DDP: broadcast buffers in each forward pass."),
        Key("ddp_static_graph", bool | None, None, "DDP: assume that the graph is the same at every step."),
    ),
}
TRAINING_KEYS: Mapping[str, Key] = MappingProxyType({key.name: key for keys in ACTING_KEYS.values() for key in keys})

# Those that most recipes set, separated by blanks: --help explains them.
MOST_USED = (
    "output_dir num_train_epochs max_steps gradient_accumulation_steps learning_rate lr_scheduler_type "
    "warmup_steps optim weight_decay max_grad_norm bf16 use_cpu gradient_checkpointing seed eval_strategy "
    "eval_steps eval_on_start save_strategy save_steps save_total_limit load_best_model_at_end "
    "metric_for_best_model logging_steps report_to dataloader_num_workers push_to_hub"
)

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
    "shuffle_dataset": "batches are shuffled in each epoch, from data_seed or else seed",
    # batches
    "packing_strategy": _BATCHES,
    "eval_packing": _BATCHES,
    "padding_free": "TRL refuses padding-free batches for vision data; packing has no padding either",
    "pad_to_multiple_of": "a packed sequence has no padding, and a padded batch is as long as its longest step",
    "train_sampling_strategy": _BATCHES,
    "length_column_name": _BATCHES,
    "dataloader_drop_last": "every step is trained on once per epoch",
    "dataloader_in_order": "batches keep their order, so that a resumed training is the same",
    "dataloader_multiprocessing_context": "loading processes are forked, to share the rows: dataloader_num_workers",
    "auto_find_batch_size": "lower tokens_per_batch, or without packing per_device_train_batch_size",
    "accelerator_config": f"{_BATCHES}; {_LAUNCH}",
    # model
    "model_init_kwargs": "use dtype, attn_implementation, model_revision",
    "trust_remote_code": "code that comes with a model is never run; choose a model of a supported family",
    "router_aux_loss_coef": f"the router of a mixture of experts is frozen; {_ANSWERS_ONLY}",
    "use_cache": "training uses no cache",
    # speed and memory
    "activation_checkpointing": "use gradient_checkpointing, which TRL switches on by default",
    "activation_checkpointing_kwargs": "use gradient_checkpointing_kwargs",
    "activation_offloading": "use gradient_checkpointing, which TRL switches on by default",
    "torch_compile": "each batch has a different length and mask and would compile the model again: leave it out",
    "torch_compile_backend": "leave it out: see torch_compile",
    "torch_compile_mode": "leave it out: see torch_compile",
    "use_liger_kernel": "its kernels were not tried with packed masks, and TRL is giving them up: leave it out",
    "liger_kernel_config": "leave it out: see use_liger_kernel",
    # evaluation
    "prediction_loss_only": _NO_LOGITS,
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "eval_accumulation_steps": _NO_LOGITS,
    "include_for_metrics": _NO_LOGITS,
    "batch_eval_metrics": _NO_LOGITS,
    "bf16_full_eval": "an evaluation runs in the arithmetic of the training: bf16",
    "fp16_full_eval": "an evaluation runs in the arithmetic of the training: fp16",
    # checkpoints
    "save_only_model": "a training cannot resume from weights alone; save_total_limit keeps checkpoints few",
    "save_on_each_node": "checkpoints are written once, to an output_dir that all machines share",
    "enable_jit_checkpoint": "after SIGTERM or SIGUSR1 a training always saves first",
    "resume_from_checkpoint": "use resume: auto, or resume: PATH",
    "ignore_data_skip": "a training resumes at the batch it stopped at",
    "restore_callback_states_from_checkpoint": "a resumed training always restores its counters",
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


def find_value(training: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key that acts: a recipe's, or else TRL's default."""
    return training.get(name, TRAINING_KEYS[name].default)


def find_refusal(key: str, value: Any, default: Any) -> str | None:
    """Return why a key that does not act is refused, or None where it asks for nothing but what is done anyway.

    `default` is that of `SFTConfig`.
    """
    if key not in REFUSED_KEYS:
        return f"{key}: found a key of TRL's that was not tried with this package; expected none: leave it out"
    usual = FIXED_KEYS.get(key, default)
    is_usual = value == usual and isinstance(value, bool) == isinstance(usual, bool)
    return None if is_usual else f"{key}: found a key that does not apply here; {REFUSED_KEYS[key]}"
