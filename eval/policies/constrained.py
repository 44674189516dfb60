"""The JSON schema of an answer, made from the agent's vocabulary, and answers held to it as they are decoded."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft.actions import POINT, ActionType
from sft.agent import AgentConfig
from sft.errors import UserError

if TYPE_CHECKING:
    import torch

# Spelled out, because xgrammar writes the values of a bare {"type": "object"} with spaces after commas.
_ANY_REF = {"$ref": "#/$defs/any"}
_ANY = {
    "anyOf": [
        *({"type": name} for name in ("string", "number", "boolean", "null")),
        {"type": "array", "items": _ANY_REF},
        {"type": "object", "additionalProperties": _ANY_REF},
    ]
}


def build_answer_schema(agent: AgentConfig) -> dict[str, Any]:
    """Return the schema of an answer: one alternative per action type, keys in their order.

    An action's arguments are optional, as in the data; the memory parts the agent writes are required objects. An
    empty target is admitted: xgrammar's strings of a least length may hold control characters, which JSON may not.
    """
    memory = {
        name: {"type": "object", "additionalProperties": _ANY_REF}
        for name, is_used in (("short_term", agent.use_short_term), ("long_term", agent.use_long_term))
        if is_used and agent.memory_writer == "model"
    }
    alternatives = [_build_action_schema(action_type, memory) for action_type in agent.actions]
    return {"anyOf": alternatives, **({"$defs": {"any": _ANY}} if memory else {})}


def _build_action_schema(action_type: ActionType, memory: dict[str, Any]) -> dict[str, Any]:
    arguments = {name: _build_argument_schema(name, values) for name, values in action_type.arguments.items()}
    target = {"type": "string"} if action_type.takes_target else {"const": ""}
    return {
        "type": "object",
        "properties": {"action": {"const": action_type.name}, "target": target, **arguments, **memory},
        "required": ["action", "target", *memory],
        "additionalProperties": False,
    }


def _build_argument_schema(name: str, values: tuple[str, ...]) -> dict[str, Any]:
    if name == POINT:
        number = {"type": "integer", "minimum": 0, "maximum": 1000}
        return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    return {"enum": list(values)} if values else {"type": ["string", "number"]}


class SchemaConstraint:
    """Restricts the next token of each answer of a batch to those that the schema allows."""

    def __init__(self, tokenizer: Any, schema: Mapping[str, Any], vocabulary_size: int):
        """Compile the schema.

        Raises:
            UserError: xgrammar is not installed.
        """
        try:
            import xgrammar
        except ImportError as error:
            raise UserError(f"found no xgrammar ({error}); expected pip install -e '.[constrained]'") from error

        # xgrammar takes all special tokens but the end of turn for text, which a string may hold: <|endoftext|> would
        # end an answer in the middle of one. As ends they are allowed behind the object alone.
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary_size, stop_token_ids=sorted({tokenizer.eos_token_id, *special})
        )
        compiler = xgrammar.GrammarCompiler(info)
        # the separators of the answers in training: JSON on one line without spaces
        self._grammar = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":"), strict_mode=False
        )
        self._xgrammar, self._vocabulary_size = xgrammar, vocabulary_size
        self._matchers: list[Any] = []

    def start(self, n_answers: int) -> "SchemaConstraint":
        """Begin `n_answers` answers, rows 0 to `n_answers` - 1."""
        self._matchers = [self._xgrammar.GrammarMatcher(self._grammar) for _ in range(n_answers)]
        return self

    def mask_logits(self, logits: "torch.Tensor", rows: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place.

        `logits`: (len(rows), 1 + longest draft, vocabulary), those of the next token and of the one after each token
        of the row's draft. They are left as they are behind a drafted token that is forbidden: it cannot be chosen.
        """
        n_rows, n_tokens, _ = logits.shape
        mask = self._xgrammar.allocate_token_bitmask(n_rows * n_tokens, self._vocabulary_size)
        for i, (row, draft) in enumerate(zip(rows, drafts)):
            matcher, n_accepted = self._matchers[row], 0
            matcher.fill_next_token_bitmask(mask, i * n_tokens)
            for token in draft:
                if not matcher.accept_token(token):
                    break
                n_accepted += 1
                if matcher.is_terminated():
                    break
                matcher.fill_next_token_bitmask(mask, i * n_tokens + n_accepted)
            matcher.rollback(n_accepted)
        self._xgrammar.apply_token_bitmask_inplace(logits.view(n_rows * n_tokens, -1), mask.to(logits.device))

    def accept(self, row: int, token: int) -> None:
        """Move one answer on by the token it was given."""
        self._matchers[row].accept_token(token)
