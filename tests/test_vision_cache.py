"""Outputs of a frozen vision tower that are kept train as those computed anew, and are those of this tower alone."""

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_packing import AGENT, build_lora_model, build_rows, compute_gradients
from test_training import _adapter, _history, _write_recipe

from sft import run
from sft.batches import vision_cache
from sft.batches.collator import PackingCollator, PaddingCollator
from sft.batches.encoder import StepEncoder
from sft.batches.vision_cache import VisionCache, build_vision_cache
from sft.compute.ledger import load_runs
from sft.data.screenshots import hash_screenshot
from sft.errors import UserError
from sft.models.model import find_family, load_model
from sft.models.processors import load_processor
from sft.models.shapes import count_output_numbers
from sft.models.vision_features import FrozenTower, find_tower, identify_tower
from sft.recipe.settings import ModelSettings

TOLERANCE = 1e-6
PADDED = ["--packing", "none", "--gradient_checkpointing", "true"]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tiny_checkpoints):
    return tiny_checkpoints[request.param]


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return StepEncoder(load_processor(checkpoint, AGENT.min_pixels, AGENT.max_pixels), AGENT)


@pytest.fixture(scope="module")
def base(checkpoint):
    """A tiny model with LoRA on its language layers, checkpointed as TRL and transformers do it."""
    model = build_lora_model(checkpoint)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


class Showing:
    """The model as the trainer calls it: what the batch says of its screenshots is shown to the tower."""

    def __init__(self, model, keep):
        self.model, self.tower = model, FrozenTower(model, keep)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, **inputs):
        with self.tower.show(inputs.pop("screenshots")):
            return self.model(**inputs)


@contextlib.contextmanager
def computed_patches(model):
    """Give what grows by the rows of pixels that pass the tower's first layer."""
    counts = []
    first = next(m for m in find_tower(model).modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.Unfold)))
    hook = first.register_forward_hook(lambda module, args, output: counts.append(len(args[0])))
    yield counts
    hook.remove()


@pytest.mark.parametrize("collator_class", [PackingCollator, PaddingCollator])
def test_kept_outputs_train_as_those_computed_anew(base, encoder, screenshots, tmp_path, collator_class):
    """All of them computed and kept, then all of them kept, then one of three lost: the same loss and gradients."""
    rows = build_rows(encoder, [screenshots[i] for i in (0, 1, 0, 2)])
    cache = VisionCache(tmp_path / "kept", "tower", free_bytes=1e9)
    tower = find_tower(base)
    plain = tower.forward
    expected = compute_gradients(base, [collator_class(encoder)(rows)])
    collate, model = collator_class(encoder, vision_cache=cache), Showing(base, cache.keep)
    try:
        for lost in ([], [], [1], [0, 1, 2]):
            for i in lost:
                (cache.folder / f"{hash_screenshot(screenshots[i])}_tower.safetensors").unlink()
            n_kept = len(list(cache.folder.iterdir()))
            batch = collate(rows)
            with computed_patches(base) as counts:
                found = compute_gradients(model, [batch])
            model.tower.finish()
            assert sum(counts) == len(batch["pixel_values"]) and bool(sum(counts)) == (n_kept < 3)
            assert len(list(cache.folder.iterdir())) == 3
            assert found[0] == pytest.approx(expected[0], rel=TOLERANCE) and found[1] == expected[1]
            assert found[2].keys() == expected[2].keys()
            for name, gradient in expected[2].items():
                assert gradient.norm() > 0 and (found[2][name] - gradient).norm() <= TOLERANCE * gradient.norm(), name
    finally:
        tower.forward = plain
    n_tokens = sum(encoder.count_image_tokens(path) for path in screenshots)
    n_numbers = sum(load_file(file)["features"].numel() for file in cache.folder.iterdir())
    assert n_numbers == pytest.approx(
        n_tokens * count_output_numbers(base.config), rel=0.25 if base.config.model_type == "llama4" else 0
    )


@pytest.fixture
def cache(tmp_path):
    """A cache with one screenshot's outputs: two of them, of three rows of four numbers, in bf16."""
    cache = VisionCache(tmp_path / "kept", "tower", free_bytes=100)
    cache.keep("a" * 64, torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4), [1, 2, 6])
    return cache


def test_outputs_come_back_to_the_bit_with_their_grid(cache):
    features, grid = cache.load("a" * 64)
    assert torch.equal(features, torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4)) and grid == [1, 2, 6]
    assert cache.load("b" * 64) is None


def test_nothing_is_written_beyond_the_bound_nor_removed_for_it_and_it_is_told_once(cache, caplog):
    """48 of 100 bytes are used: one more fits, of whatever size it is the others do not."""
    for letter in "bcd":
        cache.keep(letter * 64, torch.ones(2, 3, 4, dtype=torch.bfloat16), [1, 2, 6])
    assert {file.name[0] for file in cache.folder.iterdir()} == {"a", "b"}
    assert [record.message for record in caplog.records] == [
        "vision_cache_gb: all of it is used; what the vision tower makes of further screenshots is computed each time"
    ]


def _cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def _empty(file):
    file.write_bytes(b"")


def _turn_one_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _turn_one_bit_of_the_grid(file):
    tensors = load_file(file)
    with safe_open(file, "pt") as content:
        save_file({**tensors, "grid": tensors["grid"] + 1}, file, content.metadata())


def _write_another_format(file):
    tensors = load_file(file)
    save_file({**tensors, "features": tensors["features"].float()}, file)


@pytest.mark.parametrize("damage", [_cut, _empty, _turn_one_bit, _turn_one_bit_of_the_grid, _write_another_format])
def test_damaged_file_is_told_of_and_made_anew(cache, caplog, damage):
    (file,) = cache.folder.iterdir()
    damage(file)
    assert cache.load("a" * 64) is None
    assert f"{file}: found a damaged file" in caplog.text
    cache.keep("a" * 64, torch.ones(2, 3, 4, dtype=torch.bfloat16), [1, 2, 6])
    features, _ = cache.load("a" * 64)
    assert torch.equal(features, torch.ones(2, 3, 4))


def test_disk_that_is_full_ends_no_training(small_disk, caplog):
    folder, _ = small_disk
    cache = VisionCache(folder / "kept", "tower", free_bytes=1e9)
    for letter in "abc":
        cache.keep(letter * 64, torch.ones(1, 40, 2**18), [1, 2, 6])  # 42 of 64 MB
    assert [file.name[0] for file in cache.folder.iterdir()] == ["a"]
    assert caplog.text.count("No space left on device") == 1


@pytest.fixture
def build(tiny_checkpoints, tmp_path):
    """Build the cache of a recipe whose settings and model may be changed."""

    def build(change=lambda model: None, max_pixels=32768, settings=None, training=None):
        recipe = SimpleNamespace(
            data=SimpleNamespace(screenshot_cache=str(tmp_path / "screenshots"), vision_cache_gb=1.0),
            model=settings or ModelSettings(str(tiny_checkpoints["qwen3_vl"]), dtype="float32", load_in_4bit=False),
            training=training or {"bf16": False},
        )
        model = load_model(recipe.model, find_family(recipe.model.model_name_or_path))
        with torch.no_grad():
            change(model)
        encoder = StepEncoder(load_processor(recipe.model.model_name_or_path, 16384, max_pixels), AGENT)
        return build_vision_cache(recipe, encoder, model)

    return build


def test_outputs_are_those_of_one_tower_budget_and_format_alone(build, tiny_checkpoints, monkeypatch):
    def change_vision(model):
        next(find_tower(model).parameters()).flatten()[0] += 1e-3

    def change_merger(model):
        model.model.visual.merger.linear_fc2.bias[0] += 1e-3

    def change_language(model):
        model.model.language_model.norm.weight[0] += 1e-3

    base = str(tiny_checkpoints["qwen3_vl"])
    first = build().tower
    assert build().tower == build(change_language).tower == first
    others = [
        build(change_vision),
        build(change_merger),
        build(max_pixels=65536),
        build(settings=ModelSettings(base, dtype="bfloat16", load_in_4bit=False)),
        build(training={"bf16": True}),
        build(lambda model: setattr(model.config.vision_config, "num_heads", 4)),
    ]
    monkeypatch.setattr(vision_cache.transformers, "__version__", "5.99.0")
    others.append(build())
    assert len({first, *(other.tower for other in others)}) == 1 + len(others)


def test_room_is_what_all_files_leave_shared_by_the_processes(build, monkeypatch, caplog):
    cache = build()
    assert cache._free_bytes == 1e9
    (cache.folder / "other.safetensors").write_bytes(bytes(200_000))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with caplog.at_level(logging.INFO):
        assert build()._free_bytes == (1e9 - 200_000) / 4
    assert "0.00 of 1 GB used" in caplog.text


def test_tower_that_training_changes_is_refused(build, tiny_checkpoints):
    settings = ModelSettings(
        str(tiny_checkpoints["qwen3_vl"]), dtype="float32", load_in_4bit=False, lora_modules_to_save=("linear_fc2",)
    )
    with pytest.raises(UserError, match="vision_cache_gb: found model.visual.*linear_fc2 among lora_modules_to_save"):
        build(settings=settings)
    with pytest.raises(UserError, match=r"vision_cache_gb: found a tower with dropout \({'attention_dropout': 0.1}\)"):
        build(lambda model: setattr(model.config.vision_config, "attention_dropout", 0.1))


def test_identity_is_that_of_the_weights_whatever_file_they_came_from(tiny_checkpoints):
    settings = ModelSettings(str(tiny_checkpoints["llama4"]), dtype="float32", load_in_4bit=False)
    models = [load_model(settings, find_family(settings.model_name_or_path)) for _ in range(2)]
    assert len({identify_tower(model, ["fp32"]) for model in models}) == 1
    with torch.no_grad():
        models[1].multi_modal_projector.linear_1.weight[0, 0] += 1e-3
    assert len({identify_tower(model, ["fp32"]) for model in models}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [[], ["--packing", "none", "--gradient_checkpointing", "true"]], ids=["packed", "none"]
)
def test_training_with_kept_outputs_ends_where_one_without_does(tiny_checkpoints, tmp_path, how):
    """Each with evaluations and rollouts, loaded by a worker; the second one with the key finds all outputs kept."""
    recipe = _write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"], f"screenshot_cache: {tmp_path}/cache\n")
    more = ["--vision_cache_gb", "0.001", "--dataloader_num_workers", "1"]
    for name, arguments in {"without": [], "first": more, "second": more}.items():
        if name == "second":
            written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/vision").iterdir()}
        run.main([str(recipe), "--output_dir", str(tmp_path / name), *how, *arguments])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/vision").iterdir()} == written
    figures = {name: load_runs(tmp_path / name)[0].figures for name in ("without", "first", "second")}
    for name in ("first", "second"):
        for key in ("loss", "eval_loss", "eval_swa"):
            found, expected = _history(tmp_path / name, key), _history(tmp_path / "without", key)
            assert found == pytest.approx(expected, rel=1e-5), key
        for key, weight in _adapter(tmp_path / "without").items():
            torch.testing.assert_close(_adapter(tmp_path / name)[key], weight, rtol=1e-3, atol=2e-5)
        assert figures[name]["flops_batch_measured"] / figures[name]["flops_batch_formula"] == pytest.approx(
            1, abs=0.1
        )
    assert figures["second"]["flops"] < figures["first"]["flops"] < figures["without"]["flops"]
    assert figures["first"]["flops_batch_measured"] == figures["without"]["flops_batch_measured"]
    assert figures["second"]["flops_batch_measured"] < figures["without"]["flops_batch_measured"]
