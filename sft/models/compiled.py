"""Which functions of a language model does torch compile? RMSNorm, RoPE and SwiGLU, on a GPU, in training.

Computed operation by operation, each writes what it makes to memory, and a norm does so seven times. Compiled, each is
one kernel. Nothing else is compiled: packed batches have new shapes, and attention plans anew for every tree.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import silu
from torch.utils.checkpoint import _StopRecomputationError

from sft.models.families import part_of
from sft.models.scored_tokens import find_text_model

log = logging.getLogger("sft")


class Compiled:
    """A function of tensors that is compiled where gradients are computed on a GPU, for sizes of any kind.

    Elsewhere it is computed as it stands: a rollout's answers are those of an uncompiled model, to the bit. So it is
    for the rest of the process once a compilation has failed, whatever the reason: it only saves time. The pass of the
    model in which one fails is finished first, since checkpointing has to compute again what each layer computed: what
    was compiled stays so, and what failed is computed as it stands for tensors of these shapes.
    """

    has_failed = False  # any of them
    is_off = False  # all of them, from the pass after that on

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._failed: set[Any] = set()  # shapes and formats

    def __call__(self, *arguments: Any) -> Any:
        tensors = tuple((a.shape, a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        if not _is_worth_it(arguments[0]) or tensors in self._failed:
            return self.function(*arguments)
        try:
            return self._compile()(*arguments)
        except (torch.OutOfMemoryError, _StopRecomputationError):  # by which checkpointing ends what it has enough of
            raise
        except Exception as error:  # compilers raise of every kind, and none may end a training
            if not Compiled.has_failed:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                log.warning("norms, RoPE and SwiGLU are not compiled (%s); training goes on without, slower", reason)
            Compiled.has_failed = True
            self._failed.add(tensors)
            return self.function(*arguments)

    @staticmethod
    def begin_pass(*args: Any) -> None:
        """Switch all of them off if one has failed; called before a forward pass, when no backward pass is due."""
        Compiled.is_off = Compiled.has_failed

    def _compile(self) -> Callable[..., Any]:
        if self._compiled is None:
            # compiles the backward pass with the forward one, where a failure is caught
            torch._functorch.config.force_non_lazy_backward_lowering = True
            self._compiled = torch.compile(self.function, dynamic=True)
        return self._compiled


def _is_worth_it(tensor: torch.Tensor) -> bool:
    return not Compiled.is_off and _is_trained_on_gpu(tensor)


def _is_trained_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and tensor.requires_grad and torch.is_grad_enabled()


def _rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise (N, D) in fp32; weigh it in its own type."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(hidden.dtype)


def _centred_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise and weigh (N, D) in fp32; the weight is what is added to 1."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * (1.0 + weight.float())).to(hidden.dtype)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


rms_norm, centred_rms_norm, swiglu = Compiled(_rms_norm), Compiled(_centred_rms_norm), Compiled(_swiglu)


def compile_functions(model: torch.nn.Module) -> None:
    """Have the language layers of a model that was just loaded compute norms, RoPE and SwiGLU by these functions.

    Modules, their names and their weights stay as they are. Llama-4's RoPE, in complex numbers, is left alone.
    """
    for name, module in model.named_modules():
        if part_of(f"{name}.") not in ("language", "experts"):
            continue
        own_class: Any = type(module)
        kind = own_class.__name__
        if kind.endswith("RMSNorm") and hasattr(module, "weight"):
            module.__class__ = _override(own_class, _norm_centred if kind.startswith("Qwen3_5") else _norm)
        elif {"gate_proj", "up_proj", "down_proj"} <= module._modules.keys() and _has_silu(module):
            module.__class__ = _override(own_class, _run_mlp)
        elif kind.endswith("Attention"):
            functions: Any = sys.modules[own_class.__module__]
            rotate = getattr(functions, "apply_rotary_pos_emb", None)
            if rotate is not None and not isinstance(rotate, Compiled):
                functions.apply_rotary_pos_emb = Compiled(rotate)  # layers find it by its name there
    find_text_model(model).register_forward_pre_hook(Compiled.begin_pass)


@cache
def _override(kind: Any, forward: Callable[..., Any]) -> type:
    """Return a class of the same name with another `forward`; a copy of a module has it too."""
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _flatten(rms_norm, self, hidden)


def _norm_centred(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _flatten(centred_rms_norm, self, hidden)


def _flatten(norm: Compiled, module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Compute a norm of whatever shape as one of rows, which is compiled once for all; else as it was computed."""
    if not _is_worth_it(hidden):
        kind: Any = type(module).__mro__[1]
        return kind.forward(module, hidden)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return norm(hidden.reshape(-1, hidden.shape[-1]), module.weight, eps).view(hidden.shape)


def _run_mlp(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return self.down_proj(swiglu(self.gate_proj(hidden), self.up_proj(hidden)))


def _has_silu(module: Any) -> bool:
    activation = module._modules.get("act_fn", module._modules.get("activation_fn"))
    return type(activation).__name__ in ("SiLU", "SiLUActivation")
