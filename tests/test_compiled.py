"""Compiled norms, RoPE and SwiGLU compute what a layer computes; where they cannot be compiled, training goes on."""

import copy
import logging

import pytest
import torch
from conftest import FAMILIES
from torch._dynamo.utils import counters
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl import modeling_qwen3_vl

from sft.models import compiled
from sft.models.checkpointing import keep_products
from sft.models.compiled import Compiled, compile_functions
from sft.models.families import part_of
from sft.models.kernels import choose_kernels


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No compilation has failed; functions of transformers are as they were afterwards."""
    monkeypatch.setattr(Compiled, "has_failed", False)
    monkeypatch.setattr(Compiled, "is_off", False)
    for function in (compiled.rms_norm, compiled.centred_rms_norm, compiled.swiglu):
        monkeypatch.setattr(function, "_failed", set())
    rotations = {}
    for family in FAMILIES:
        module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
        if rotate := getattr(module, "apply_rotary_pos_emb", None):
            rotations[module] = getattr(rotate, "function", rotate)
            module.apply_rotary_pos_emb = rotations[module]
    yield
    for module, rotate in rotations.items():
        module.apply_rotary_pos_emb = rotate
    torch._dynamo.reset()


@pytest.fixture
def on_cpu(monkeypatch):
    """Compile where a GPU would, with inductor and the C++ compiler of this machine."""
    worth = lambda tensor: tensor.requires_grad and torch.is_grad_enabled()  # noqa: E731
    monkeypatch.setattr(compiled, "_is_trained_on_gpu", worth)
    counters.clear()


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()


def compute(model, n_tokens=40):
    """Return logits and gradients of all weights."""
    model.zero_grad()
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (1, n_tokens))
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def list_changed(model, stock):
    """Return the modules of another class than in a stock model."""
    return [n for (n, m), (_, s) in zip(model.named_modules(), stock.named_modules()) if type(m) is not type(s)]


# Of two layers: two norms each, two more where queries and keys are normalised (in Qwen3.5 in one of the two), and the
# last one; an MLP each, unless it has experts. Llama-4 has four layers, two of them with experts and a shared one.
NORMS_AND_MLPS = {
    "qwen3_vl": (9, 2),
    "qwen2_5_vl": (5, 2),
    "llama4": (9, 4),
    "qwen2_vl": (5, 2),
    "qwen3_vl_moe": (9, 0),
    "qwen3_5": (7, 2),
    "qwen3_5_moe": (7, 2),
}


def test_functions_are_those_of_the_layers_to_the_bit(checkpoint):
    """Not compiled, as in a rollout and on a CPU: every norm and MLP of the language layers computes the same."""
    stock, model = load(checkpoint), load(checkpoint)
    compile_functions(model)
    changed = list_changed(model, stock)
    n_norms = sum(name.endswith("norm") for name in changed)
    assert (n_norms, len(changed) - n_norms) == NORMS_AND_MLPS[stock.config.model_type]
    assert {part_of(f"{name}.") for name in changed} <= {"language", "experts"}
    assert model.state_dict().keys() == stock.state_dict().keys()
    (logits, gradients), (expected, expected_gradients) = compute(model), compute(stock)
    assert torch.equal(logits, expected)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradient, expected_gradients[name]) for name, gradient in gradients.items())


@pytest.mark.slow
def test_compiled_layers_have_the_same_outputs_and_gradients(checkpoint, on_cpu):
    stock, model = load(checkpoint), load(checkpoint)
    expected, expected_gradients = compute(stock)
    compile_functions(model)
    logits, gradients = compute(model)
    assert not Compiled.has_failed and counters["stats"]["unique_graphs"] >= 3
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= 1e-5 * expected_gradients[name].norm(), name


@pytest.mark.slow
def test_checkpointing_computes_compiled_functions_again_to_the_bit(tiny_checkpoints, on_cpu):
    """And the first batch of a training, whose operations are counted, leaves them compiled."""
    pytest.importorskip("bitsandbytes")  # whose operations are counted too
    from sft.compute.flops import FlopCounter

    model = load(tiny_checkpoints["qwen3_vl"])
    compile_functions(model)
    with torch.compiler.set_stance("force_eager"), FlopCounter() as counter:  # as the step meter does
        compute(model)
    assert counter.total > 0
    found, n_graphs = {}, []
    for form in ("selective", "true", "none"):
        model.gradient_checkpointing_disable()
        if form != "none":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if form == "selective":
            keep_products(model, 0)
        found[form] = compute(model)
        n_graphs.append(counters["stats"]["unique_graphs"])
    assert not Compiled.has_failed and 3 <= n_graphs[0] == n_graphs[2]
    for form in ("true", "selective"):
        assert torch.equal(found[form][0], found["none"][0])
        for name, gradient in found["none"][1].items():
            assert torch.equal(found[form][1][name], gradient), (form, name)


@pytest.mark.slow
def test_batches_of_new_lengths_compile_nothing_again(tiny_checkpoints, on_cpu):
    model = load(tiny_checkpoints["qwen3_vl"])
    compile_functions(model)
    compute(model, 40)
    n_graphs = counters["stats"]["unique_graphs"]
    for n_tokens in (41, 64, 57, 128, 33):
        compute(model, n_tokens)
    assert counters["stats"]["unique_graphs"] == n_graphs


def test_rollout_compiles_nothing(tiny_checkpoints, on_cpu):
    model = load(tiny_checkpoints["qwen3_vl"]).eval()
    compile_functions(model)
    with torch.no_grad():
        for n_rows in (1, 3):
            model(input_ids=torch.randint(5, 50, (n_rows, 20)), use_cache=True)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_failing_compiler_costs_one_warning(tiny_checkpoints, on_cpu, monkeypatch, caplog, when):
    def fail(graph, inputs):
        raise ImportError("no working C compiler")

    from torch._dynamo.backends.common import aot_autograd

    backend = fail if when == "forward" else aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fail)
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compile_with(f, backend=backend, **kwargs))
    for function in (compiled.rms_norm, compiled.centred_rms_norm, compiled.swiglu):
        monkeypatch.setattr(function, "_compiled", None)
    stock, model = load(tiny_checkpoints["qwen3_vl"]), load(tiny_checkpoints["qwen3_vl"])
    compile_functions(model)
    expected = compute(stock)
    with caplog.at_level(logging.WARNING, logger="sft"):
        found = [compute(model) for _ in range(2)]
    warnings = [record.getMessage() for record in caplog.records if record.name == "sft"]
    assert len(warnings) == 1 and warnings[0].startswith("norms, RoPE and SwiGLU are not compiled (BackendCompilerF")
    for logits, gradients in found:
        torch.testing.assert_close(logits, expected[0], rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            assert (gradient - expected[1][name]).norm() <= 1e-5 * expected[1][name].norm(), name


@pytest.mark.slow
def test_function_that_fails_behind_compiled_ones_ends_no_checkpointed_training(tiny_checkpoints, on_cpu, monkeypatch):
    """What a layer computed compiled is computed so again; the next pass compiles nothing."""
    compile_with = torch.compile

    def compile_or_fail(function, **kwargs):
        if function is compiled.swiglu.function:
            raise ImportError("no working C compiler")
        return compile_with(function, backend="aot_eager", **kwargs)

    monkeypatch.setattr(torch, "compile", compile_or_fail)
    for function in (compiled.rms_norm, compiled.swiglu):
        monkeypatch.setattr(function, "_compiled", None)
    stock, model = load(tiny_checkpoints["qwen3_vl"]), load(tiny_checkpoints["qwen3_vl"])
    compile_functions(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = compute(stock)
    n_graphs = []
    for n_tokens in (40, 40, 41):
        found = compute(model, n_tokens)
        n_graphs.append(counters["stats"]["unique_graphs"])
        if n_tokens == 40:
            for name, gradient in found[1].items():
                assert (gradient - expected[1][name]).norm() <= 1e-5 * expected[1][name].norm(), name
    assert n_graphs[0] == n_graphs[2] > 0 and Compiled.has_failed


def test_memory_that_runs_out_is_no_failure_of_the_compiler(monkeypatch):
    function = Compiled(torch.neg)
    monkeypatch.setattr(compiled, "_is_trained_on_gpu", lambda tensor: True)

    def run_out(*args):
        raise torch.OutOfMemoryError

    function._compiled = run_out
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.ones(1))
    assert not Compiled.has_failed


def test_checkpointing_may_end_within_a_function(monkeypatch):
    """It stops computing again by an exception, once it has what it lacks: here what the function keeps."""
    monkeypatch.setattr(compiled, "_is_trained_on_gpu", lambda tensor: True)
    function = Compiled(torch.exp)
    function._compiled = torch.exp
    x = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(lambda x: function(2 * x), x, use_reentrant=False).sum().backward()
    assert not Compiled.has_failed
    torch.testing.assert_close(x.grad, 2 * torch.exp(2 * x))


def test_copy_of_a_norm_has_weights_of_its_own(tiny_checkpoints):
    """PEFT copies the modules of lora_modules_to_save."""
    model = load(tiny_checkpoints["qwen3_vl"])
    compile_functions(model)
    norm = model.model.language_model.norm
    twin = copy.deepcopy(norm)
    twin.weight.data.fill_(2)
    hidden = torch.randn(1, 3, norm.weight.numel())
    torch.testing.assert_close(twin(hidden), 2 * norm(hidden))


def test_models_on_a_cpu_are_left_as_they_are(tiny_checkpoints):
    stock, model = load(tiny_checkpoints["qwen3_vl"]), load(tiny_checkpoints["qwen3_vl"])
    choose_kernels(model)
    assert not any("language_model" in name for name in list_changed(model, stock))
    assert not isinstance(modeling_qwen3_vl.apply_rotary_pos_emb, Compiled)
