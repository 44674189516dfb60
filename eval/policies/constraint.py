"""Answers held to their JSON schema while they are decoded, with xgrammar. Knows nothing of tasks."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xgrammar


class SchemaConstraint:
    """Lets each answer of a batch go on only with tokens that the schema allows."""

    def __init__(self, tokenizer: Any, schema: Mapping[str, Any], vocabulary_size: int):
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
        self._vocabulary_size = vocabulary_size
        self._matchers: list[Any] = []

    def start(self, n_answers: int) -> "SchemaConstraint":
        """Begin `n_answers` answers, rows 0 to `n_answers` - 1."""
        self._matchers = [xgrammar.GrammarMatcher(self._grammar) for _ in range(n_answers)]
        return self

    def mask_logits(self, logits: torch.Tensor, rows: Sequence[int]) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place. `logits`: (len(rows), vocabulary)."""
        mask = xgrammar.allocate_token_bitmask(len(rows), self._vocabulary_size)
        for i, row in enumerate(rows):
            self._matchers[row].fill_next_token_bitmask(mask, i)
        xgrammar.apply_token_bitmask_inplace(logits, mask.to(logits.device))

    def accept(self, row: int, token: int) -> None:
        """Move one answer on by the token it was given."""
        self._matchers[row].accept_token(token)
