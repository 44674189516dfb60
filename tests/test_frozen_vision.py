"""A frozen vision tower takes part in no backward pass; a trained one does."""

import pytest
from conftest import FAMILIES
from peft import get_peft_model
from trajectory_samples import TINY_AGENT

from sft.batches.collator import PackingCollator
from sft.batches.encoding import StepEncoder
from sft.batches.examples import build_step_rows
from sft.models.families import part_of
from sft.models.model import build_lora_config, find_family, load_model
from sft.models.processors import load_processor
from sft.recipe.settings import ModelSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("parts", [("language",), ("language", "merger"), ("language", "vision")], ids=",".join)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_vision_layers_keep_a_graph_only_where_lora_is_on_them(tiny_checkpoints, tasks, tasks_csv, family_name, parts):
    """With checkpointing as TRL and transformers switch it on, both of which mark the input embeddings."""
    checkpoint = tiny_checkpoints[family_name]
    settings = ModelSettings(str(checkpoint), dtype="float32", load_in_4bit=False, lora_parts=parts)
    family = find_family(str(checkpoint))
    model = get_peft_model(load_model(settings, family), build_lora_config(settings, family))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    has_graph = {}
    for name, module in model.named_modules():
        if part_of(name) == "vision" and name.rpartition(".")[2].isdigit():  # the layers of the tower
            module.register_forward_hook(
                lambda module, args, output, name=name: has_graph.update(
                    {name: (output[0] if isinstance(output, tuple) else output).requires_grad}
                )
            )
    encoder = StepEncoder(load_processor(checkpoint, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels), TINY_AGENT)
    rows = build_step_rows(tasks, str(tasks_csv), encoder, show_progress=False).dataset
    batch = PackingCollator(encoder)([rows[0]])
    labels = batch.pop("labels")
    del batch["subtree_end"]  # a single step: plainly causal
    model(**batch, labels=labels, use_cache=False).loss.backward()
    assert has_graph and set(has_graph.values()) == {"vision" in parts}
    trained = {part_of(name) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == set(parts)
