"""Which keys of TRL's `SFTConfig` a recipe may set. Imports nothing of it."""

# Keys of SFTConfig that would undo what this package guarantees, and the way out.
REFUSED_KEYS = {
    "max_length": "steps are never cut; bound them with max_prompt_tokens and max_answer_tokens",
    "truncation_mode": "steps are never cut",
    "completion_only_loss": "the loss is always on the answer only",
    "assistant_only_loss": "the loss is always on the answer only",
    "dataset_text_field": "the data is a trajectory CSV: train_csv",
    "dataset_kwargs": "the data is a trajectory CSV: train_csv",
    "remove_unused_columns": "the collator needs every column",
    "eos_token": "the answer ends with the model's own end-of-turn token",
    "chat_template_path": "the model's own chat template is used",
    "model_init_kwargs": "use dtype, attn_implementation, model_revision",
    "hub_token": "a recipe is saved with the model; log in with `hf auth login` or set HF_TOKEN",
    "hub_strategy": "the model is uploaded once, when it is saved",
    "hub_always_push": "the model is uploaded once, when it is saved",
    "hub_revision": "the model is uploaded to the main branch",
    "resume_from_checkpoint": "use resume: auto, or resume: PATH",
    "deepspeed": "how processes are started stands in accelerate_configs/",
    "fsdp": "how processes are started stands in accelerate_configs/",
    "router_aux_loss_coef": "a router of experts is frozen; the loss is always on the answer only",
    "activation_checkpointing": "use gradient_checkpointing, which TRL switches on by default",
    "activation_checkpointing_kwargs": "use gradient_checkpointing_kwargs",
    "padding_free": "TRL refuses padding-free batches for vision data",
}
