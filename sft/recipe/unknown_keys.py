"""What a key that does not exist here is called: names of older versions and of other tools, with the one to use."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_PACKED = "packing decides which steps are in one batch: leave it out"
_LAUNCH = "accelerate_configs/ says how processes are started"
_BATCH = "tokens_per_batch bounds a packed batch; per_device_train_batch_size counts steps with packing: none"
_UNCUT = "steps are never cut: max_answer_tokens bounds the answer"
_4BIT = "weights are held in 4 bits (nf4) or as they are"
_PARTS = "LoRA is chosen by part of the model: language, merger, vision or experts"
_STEPS_OR_SHARE = "a number of steps, or below 1 a share of all"
_DEVICE = "use_cpu: true trains on the CPU; other devices are detected"

# What other tools and older versions write: the key here (None: there is none), their names, and one sentence.
SPELLINGS: tuple[tuple[str | None, str, str], ...] = (
    ("dtype", "torch_dtype model_dtype", ""),
    ("dtype", "precision", "bf16: true chooses mixed precision"),
    ("dtype", "compute_dtype bnb_4bit_compute_dtype", "4-bit arithmetic uses it too"),
    ("bf16", "mixed_precision half_precision_backend", ""),
    ("dtype", "fp32", "dtype: float32 with bf16: false"),
    (
        "model_name_or_path",
        "model model_name model_id model_path base_model base_model_name pretrained_model_name_or_path",
        "",
    ),
    ("model_name_or_path", "use_local", "give the local folder instead"),
    ("model_revision", "revision", ""),
    ("attn_implementation", "flash_attn attention_implementation", ""),
    (
        "attn_implementation",
        "use_flash_attn use_flash_attention_2 flash_attention",
        "flash_attention_2 needs packing: none",
    ),
    (None, "template chat_template", "the model's own chat template is used: leave it out"),
    ("max_pixels", "image_max_pixels", ""),
    ("min_pixels", "image_min_pixels", ""),
    ("load_in_4bit", "quantization_bit quantization load_in_8bit", _4BIT),
    ("load_in_4bit", "use_4bit qlora", ""),
    ("load_in_4bit", "bnb_4bit_quant_type", "4-bit weights are always nf4"),
    ("load_in_4bit", "bnb_4bit_use_double_quant use_bnb_nested_quant", "4-bit weights are always quantised twice"),
    ("use_peft", "finetuning_type", "true trains a LoRA adapter, false every parameter"),
    ("use_peft", "use_lora lora_enable", ""),
    ("use_peft", "full_finetuning", "false trains every parameter"),
    ("lora_r", "lora_rank lora_dim rank r", ""),
    ("lora_alpha", "alpha", ""),
    ("lora_dropout", "dropout", ""),
    (
        "lora_parts",
        "target_modules lora_target lora_target_modules freeze_vision_tower freeze_multi_modal_projector",
        _PARTS,
    ),
    ("lora_modules_to_save", "modules_to_save additional_target", ""),
    ("train_csv", "csv_path dataset dataset_name data_path train_file train_data", ""),
    ("val_csv", "validation_file eval_dataset", ""),
    ("val_split", "val_size", "a share of the tasks"),
    ("image_root", "image_dir image_folder media_dir", ""),
    ("task_end", "max_samples", "tasks are chosen by position: task_start, task_end"),
    ("max_prompt_tokens", "max_seq_length max_seq_len model_max_length cutoff_len sequence_len", _UNCUT),
    ("max_answer_tokens", "max_new_tokens", ""),
    ("dataloader_num_workers", "preprocessing_num_workers num_workers", ""),
    ("tokens_per_batch", "batch_size train_batch_size micro_batch_size per_device_batch_size", _BATCH),
    ("tokens_per_batch", "per_gpu_train_batch_size global_batch_size", _BATCH),
    (
        "per_device_eval_batch_size",
        "eval_batch_size per_gpu_eval_batch_size",
        "with packing: none; else tokens_per_batch",
    ),
    ("gradient_accumulation_steps", "gradient_accumulation grad_accum", ""),
    ("num_train_epochs", "num_epochs epochs n_epochs", ""),
    ("max_steps", "steps num_train_steps", ""),
    (None, "group_by_length split_batches dispatch_batches", _PACKED),
    ("seed", "random_seed", ""),
    ("learning_rate", "lr", ""),
    ("optim", "optimizer", ""),
    ("lr_scheduler_type", "scheduler lr_scheduler", ""),
    ("warmup_steps", "warmup_ratio num_warmup_steps", _STEPS_OR_SHARE),
    ("max_grad_norm", "gradient_clipping clip_grad_norm max_norm", ""),
    ("label_smoothing_factor", "label_smoothing", ""),
    ("neftune_noise_alpha", "neftune_alpha", ""),
    ("optim", "adafactor", "optim: adafactor"),
    ("gradient_checkpointing", "use_gradient_checkpointing", ""),
    ("fp16", "fp16_backend fp16_opt_level", ""),
    ("eval_strategy", "evaluation_strategy", ""),
    ("eval_on_start", "do_eval_at_start", ""),
    ("eval_steps", "evaluation_steps", ""),
    (
        None,
        "include_inputs_for_metrics compute_metrics jit_mode_eval",
        "an evaluation computes the loss and rolls out the model: leave it out",
    ),
    ("early_stopping_patience", "early_stopping patience", ""),
    ("load_best_model_at_end", "save_best_model", ""),
    (None, "save_safetensors", "weights are always written as safetensors: leave it out"),
    (
        None,
        "overwrite_output_dir",
        "an output folder that holds checkpoints is resumed from (resume: auto) or refused",
    ),
    ("output_dir", "output save_dir", ""),
    (None, "logging_dir", "logs are written below output_dir: leave it out"),
    ("logging_steps", "log_steps", ""),
    ("resume", "resume_training auto_resume", "auto, or the path of a checkpoint"),
    ("report_to", "wandb_project", "report_to: wandb; the project is read from WANDB_PROJECT"),
    ("report_to", "use_wandb", "report_to: wandb"),
    (None, "plot_loss", "training_curves.png is always drawn: leave it out"),
    (None, "include_tokens_per_second", "compute_ledger.jsonl in output_dir always records it: leave it out"),
    ("hub_model_id", "push_to_hub_model_id", ""),
    (None, "push_to_hub_token", "log in with `hf auth login` or set HF_TOKEN"),
    ("use_cpu", "no_cuda", ""),
    ("use_cpu", "device device_map use_mps_device", _DEVICE),
    (None, "use_ipex past_index", "leave it out"),
    (None, "torchdynamo", "leave it out: see torch_compile"),
    (None, "use_kernels", "kernels from the Hub were not tried with packed masks: leave it out"),
    (None, "num_gpus sharded_ddp deepspeed_config zero_stage tpu_num_cores mp_parameters", _LAUNCH),
    (None, "ray_scope", "to search hyperparameters, start sft/run.py with other values"),
)
# By name: the key here, and the sentence ("" where the key says it all).
KNOWN_SPELLINGS: Mapping[str, tuple[str | None, str]] = MappingProxyType(
    {name: (key, sentence) for key, names, sentence in SPELLINGS for name in names.split()}
)


def describe_unknown_key(key: object, keys: Sequence[str]) -> str:
    """Return the problem with a key that is none of `keys`: what it may have been meant to be."""
    name = str(key)
    problem = f"{name}: found an unknown key"
    ours, sentence = KNOWN_SPELLINGS.get(name.lower().replace("-", "_"), (None, ""))
    if ours is None and not sentence:
        ours = next(iter(difflib.get_close_matches(name, keys, n=1)), None)
    if ours is None:
        return f"{problem}; {sentence}" if sentence else problem
    return f"{problem}; did you mean {ours}?" + (f" ({sentence})" if sentence else "")
