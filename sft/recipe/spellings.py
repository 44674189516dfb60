"""What a key that does not exist here is called: names of older versions and of other tools, with the one to use."""

import difflib
from collections.abc import Mapping, Sequence

_BATCH = "tokens_per_batch bounds a packed batch; per_device_train_batch_size counts steps with packing: none"
_UNCUT = "steps are never cut: max_answer_tokens bounds the answer"
_4BIT = "weights are held in 4 bits (nf4) or as they are"
_PARTS = "LoRA is chosen by part of the model: language, merger, vision or experts"
_STEPS_OR_SHARE = "a number of steps, or below 1 a share of all"
_SAMPLING = "which steps are one batch is decided by packing"
_SAFETENSORS = "weights are always written as safetensors"
_DEVICE = "use_cpu: true trains on the CPU; other devices are found without a word"
_LEDGER = "the ledger in output_dir has it in any case"
_METRICS = "an evaluation computes the loss and rolls the model out"

# Key as people write it: the key here, or None where there is none, and one sentence ("" where the name says it all).
KNOWN_SPELLINGS: Mapping[str, tuple[str | None, str]] = {
    # model
    "torch_dtype": ("dtype", ""),
    "model_dtype": ("dtype", ""),
    "precision": ("dtype", "bf16: true chooses mixed precision besides"),
    "compute_dtype": ("dtype", "4-bit arithmetic is done in it too"),
    "bnb_4bit_compute_dtype": ("dtype", "4-bit arithmetic is done in it too"),
    "mixed_precision": ("bf16", ""),
    "fp32": ("dtype", "dtype: float32 with bf16: false"),
    "model": ("model_name_or_path", ""),
    "model_name": ("model_name_or_path", ""),
    "model_id": ("model_name_or_path", ""),
    "model_path": ("model_name_or_path", ""),
    "base_model": ("model_name_or_path", ""),
    "base_model_name": ("model_name_or_path", ""),
    "pretrained_model_name_or_path": ("model_name_or_path", ""),
    "use_local": ("model_name_or_path", "a local folder is given in its place"),
    "revision": ("model_revision", ""),
    "flash_attn": ("attn_implementation", ""),
    "use_flash_attn": ("attn_implementation", "flash_attention_2 takes packing: none"),
    "use_flash_attention_2": ("attn_implementation", "flash_attention_2 takes packing: none"),
    "flash_attention": ("attn_implementation", "flash_attention_2 takes packing: none"),
    "attention_implementation": ("attn_implementation", ""),
    "template": (None, "the model's own chat template is used: leave it out"),
    "chat_template": (None, "the model's own chat template is used: leave it out"),
    "image_max_pixels": ("max_pixels", ""),
    "image_min_pixels": ("min_pixels", ""),
    # quantisation and LoRA
    "quantization_bit": ("load_in_4bit", _4BIT),
    "quantization": ("load_in_4bit", _4BIT),
    "load_in_8bit": ("load_in_4bit", _4BIT),
    "use_4bit": ("load_in_4bit", ""),
    "qlora": ("load_in_4bit", ""),
    "bnb_4bit_quant_type": ("load_in_4bit", "4-bit weights are always nf4"),
    "bnb_4bit_use_double_quant": ("load_in_4bit", "4-bit weights are always quantised twice"),
    "use_bnb_nested_quant": ("load_in_4bit", "4-bit weights are always quantised twice"),
    "finetuning_type": ("use_peft", "true trains a LoRA adapter, false every parameter"),
    "use_lora": ("use_peft", ""),
    "lora_enable": ("use_peft", ""),
    "full_finetuning": ("use_peft", "false trains every parameter"),
    "lora_rank": ("lora_r", ""),
    "lora_dim": ("lora_r", ""),
    "rank": ("lora_r", ""),
    "r": ("lora_r", ""),
    "alpha": ("lora_alpha", ""),
    "dropout": ("lora_dropout", ""),
    "target_modules": ("lora_parts", _PARTS),
    "lora_target": ("lora_parts", _PARTS),
    "lora_target_modules": ("lora_parts", _PARTS),
    "freeze_vision_tower": ("lora_parts", _PARTS),
    "freeze_multi_modal_projector": ("lora_parts", _PARTS),
    "modules_to_save": ("lora_modules_to_save", ""),
    "additional_target": ("lora_modules_to_save", ""),
    # data
    "csv_path": ("train_csv", ""),
    "dataset": ("train_csv", ""),
    "dataset_name": ("train_csv", ""),
    "data_path": ("train_csv", ""),
    "train_file": ("train_csv", ""),
    "train_data": ("train_csv", ""),
    "validation_file": ("val_csv", ""),
    "eval_dataset": ("val_csv", ""),
    "val_size": ("val_split", "a share of the tasks"),
    "image_dir": ("image_root", ""),
    "image_folder": ("image_root", ""),
    "media_dir": ("image_root", ""),
    "max_samples": ("task_end", "tasks are chosen by position: task_start, task_end"),
    "max_seq_length": ("max_prompt_tokens", _UNCUT),
    "max_seq_len": ("max_prompt_tokens", _UNCUT),
    "model_max_length": ("max_prompt_tokens", _UNCUT),
    "cutoff_len": ("max_prompt_tokens", _UNCUT),
    "sequence_len": ("max_prompt_tokens", _UNCUT),
    "max_new_tokens": ("max_answer_tokens", ""),
    "preprocessing_num_workers": ("dataloader_num_workers", ""),
    "num_workers": ("dataloader_num_workers", ""),
    # batches and course
    "batch_size": ("tokens_per_batch", _BATCH),
    "train_batch_size": ("tokens_per_batch", _BATCH),
    "micro_batch_size": ("tokens_per_batch", _BATCH),
    "per_device_batch_size": ("tokens_per_batch", _BATCH),
    "per_gpu_train_batch_size": ("tokens_per_batch", _BATCH),
    "global_batch_size": ("tokens_per_batch", _BATCH),
    "eval_batch_size": ("per_device_eval_batch_size", "with packing: none; else tokens_per_batch"),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", "with packing: none; else tokens_per_batch"),
    "gradient_accumulation": ("gradient_accumulation_steps", ""),
    "grad_accum": ("gradient_accumulation_steps", ""),
    "num_epochs": ("num_train_epochs", ""),
    "epochs": ("num_train_epochs", ""),
    "n_epochs": ("num_train_epochs", ""),
    "steps": ("max_steps", ""),
    "num_train_steps": ("max_steps", ""),
    "group_by_length": (None, f"{_SAMPLING}: leave it out"),
    "split_batches": (None, f"{_SAMPLING}: leave it out"),
    "dispatch_batches": (None, f"{_SAMPLING}: leave it out"),
    "random_seed": ("seed", ""),
    # optimiser
    "lr": ("learning_rate", ""),
    "optimizer": ("optim", ""),
    "scheduler": ("lr_scheduler_type", ""),
    "lr_scheduler": ("lr_scheduler_type", ""),
    "warmup_ratio": ("warmup_steps", _STEPS_OR_SHARE),
    "num_warmup_steps": ("warmup_steps", _STEPS_OR_SHARE),
    "gradient_clipping": ("max_grad_norm", ""),
    "clip_grad_norm": ("max_grad_norm", ""),
    "max_norm": ("max_grad_norm", ""),
    "label_smoothing": ("label_smoothing_factor", ""),
    "neftune_alpha": ("neftune_noise_alpha", ""),
    "adafactor": ("optim", "optim: adafactor"),
    "use_gradient_checkpointing": ("gradient_checkpointing", ""),
    "fp16_backend": ("fp16", ""),
    "half_precision_backend": ("bf16", ""),
    "fp16_opt_level": ("fp16", ""),
    # evaluation, checkpoints, log
    "evaluation_strategy": ("eval_strategy", ""),
    "do_eval_at_start": ("eval_on_start", ""),
    "evaluation_steps": ("eval_steps", ""),
    "include_inputs_for_metrics": (None, f"{_METRICS}: leave it out"),
    "compute_metrics": (None, f"{_METRICS}: leave it out"),
    "early_stopping": ("early_stopping_patience", ""),
    "patience": ("early_stopping_patience", ""),
    "save_best_model": ("load_best_model_at_end", ""),
    "save_safetensors": (None, f"{_SAFETENSORS}: leave it out"),
    "overwrite_output_dir": (
        None,
        "an output folder that holds checkpoints is resumed from (resume: auto) or refused",
    ),
    "output": ("output_dir", ""),
    "save_dir": ("output_dir", ""),
    "logging_dir": (None, "logs are written below output_dir: leave it out"),
    "log_steps": ("logging_steps", ""),
    "resume_training": ("resume", "auto, or the path of a checkpoint"),
    "auto_resume": ("resume", "auto, or the path of a checkpoint"),
    "wandb_project": ("report_to", "report_to: wandb; the project is read from WANDB_PROJECT"),
    "use_wandb": ("report_to", "report_to: wandb"),
    "plot_loss": (None, "training_curves.png is always drawn: leave it out"),
    "include_tokens_per_second": (None, f"{_LEDGER}: leave it out"),
    "push_to_hub_model_id": ("hub_model_id", ""),
    "push_to_hub_token": (None, "log in with `hf auth login` or set HF_TOKEN"),
    # devices and processes
    "no_cuda": ("use_cpu", ""),
    "device": ("use_cpu", _DEVICE),
    "device_map": ("use_cpu", _DEVICE),
    "use_mps_device": ("use_cpu", _DEVICE),
    "use_ipex": (None, "leave it out"),
    "jit_mode_eval": (None, f"{_METRICS}: leave it out"),
    "torchdynamo": (None, "leave it out: see torch_compile"),
    "use_kernels": (None, "kernels from the Hub were not tried with packed masks: leave it out"),
    "past_index": (None, "leave it out"),
    "num_gpus": (None, "how processes are started stands in accelerate_configs/"),
    "sharded_ddp": (None, "how processes are started stands in accelerate_configs/"),
    "deepspeed_config": (None, "how processes are started stands in accelerate_configs/"),
    "zero_stage": (None, "how processes are started stands in accelerate_configs/"),
    "tpu_num_cores": (None, "how processes are started stands in accelerate_configs/"),
    "mp_parameters": (None, "how processes are started stands in accelerate_configs/"),
    "ray_scope": (None, "hyperparameters are searched by starting sft/run.py with other values"),
}


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
