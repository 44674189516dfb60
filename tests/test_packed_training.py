"""Epochs with packing end in the parameters of epochs without, when the steps come in the same order."""

import pytest
import torch
from trajectory_samples import TINY_AGENT
from trl import SFTConfig

from sft.batches.collator import PackingCollator, PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.examples import build_step_rows, read_step_sizes
from sft.batches.sampler import PackSampler
from sft.models.model import build_lora_config, find_family, load_model
from sft.models.processors import load_processor
from sft.recipe.settings import ModelSettings
from sft.trainer import TrajectoryTrainer

pytestmark = pytest.mark.slow


class JoinedPacks(PackSampler):
    """The packs of an optimiser step as one batch."""

    def plan(self, epoch):
        packs = super().plan(epoch)
        steps = [packs[i : i + self.packs_per_step] for i in range(0, len(packs), self.packs_per_step)]
        return [[row for pack in step for row in pack] for step in steps]

    def __len__(self):
        return -(-super().__len__() // self.packs_per_step)


def train(checkpoint, tasks, tasks_csv, collator_class, folder, accumulation=1, is_joined=False, **settings):
    """Train two epochs whose batches are the packs of one sampler; return the adapter and the logged losses.

    `is_joined`: the packs that would be accumulated are one batch.
    """
    model_settings = ModelSettings(str(checkpoint), dtype="float32", lora_dropout=0.0)
    family = find_family(str(checkpoint))
    encoder = StepEncoder(load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)
    rows = build_step_rows(tasks, str(tasks_csv), encoder, show_progress=False).dataset
    sizes = read_step_sizes(rows)
    longest = max(size.n_tokens for size in sizes)
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1 if is_joined else accumulation,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        max_length=None,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **{"gradient_checkpointing": False, **settings},
    )
    trainer = TrajectoryTrainer(
        model=load_model(model_settings, family),
        args=arguments,
        train_dataset=rows,
        processing_class=encoder.processor,
        data_collator=collator_class(encoder),
        pack_sampler=(JoinedPacks if is_joined else PackSampler)(sizes, 2 * longest, 0, accumulation=accumulation),
        peft_config=build_lora_config(model_settings, family),
    )
    trainer.train()
    adapter = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return adapter, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3_vl", {}),
        ("qwen3_vl", {"gradient_checkpointing": True}),
        ("qwen3_vl", {"accumulation": 2}),
        ("llama4", {"gradient_checkpointing": True, "router_aux_loss_coef": 0.0}),
        ("qwen2_vl", {"gradient_checkpointing": True}),
        ("qwen3_vl_moe", {"gradient_checkpointing": True, "router_aux_loss_coef": 0.0}),
        ("qwen3_5", {"gradient_checkpointing": True}),
        ("qwen3_5_moe", {"gradient_checkpointing": True, "router_aux_loss_coef": 0.0}),
    ],
    ids=str,
)
def test_packed_epochs_end_where_padded_ones_do(tiny_checkpoints, tasks, tasks_csv, tmp_path, family, settings):
    """Padded, all steps of an optimiser step are one batch: its mean is over the tokens of packs of unequal length."""
    checkpoint = tiny_checkpoints[family]
    packed, packed_losses = train(checkpoint, tasks, tasks_csv, PackingCollator, tmp_path / "a", **settings)
    padded, padded_losses = train(
        checkpoint, tasks, tasks_csv, PaddingCollator, tmp_path / "b", is_joined=True, **settings
    )
    assert len(packed_losses) >= 4 and packed_losses[-1] < packed_losses[0]
    assert packed_losses == pytest.approx(padded_losses, rel=1e-4)
    # Adam divides by the gradient's size, so that where it is nearly 0 rounding shows: one of 3,072 numbers of one of
    # Llama-4's matrices was 7.9e-5 off, with a learning rate of 1e-3
    atol = 2e-5 if family == "qwen3_vl" else 1.5e-4
    for name, parameter in packed.items():
        torch.testing.assert_close(parameter, padded[name], rtol=1e-3, atol=atol)
