"""Trainer callbacks that time optimiser steps. In a file of their own: no command line waits for transformers."""

import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def read_clock() -> float:
    """Return the time in seconds, once a GPU has done what it was given: kernels run on while Python is ahead."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """Times the optimiser steps of a trainer, and counts the steps of tasks and the tokens that each trained."""

    def __init__(self, trainer: Trainer) -> None:
        self.seconds: list[float] = []
        self._counts: list[list[torch.Tensor]] = []
        train = trainer.training_step

        def count_and_train(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._counts[-1].append(_count(inputs))
            return train(model, inputs, *args, **kwargs)

        trainer.training_step = count_and_train
        trainer.add_callback(self)

    @property
    def counts(self) -> list[tuple[int, int]]:
        """The steps of tasks and the tokens (padding left out) of every optimiser step."""
        return [tuple(torch.stack(batches).sum(0).tolist()) for batches in self._counts]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._counts.append([])
        self._started = read_clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(read_clock() - self._started)


def _count(inputs: dict[str, Any]) -> torch.Tensor:
    """Count answers and tokens of a batch, packed or padded, where it lies: reading the sums waits for the GPU."""
    trained, mask = inputs["labels"] != -100, inputs.get("attention_mask")
    n_steps = (trained[:, 1:] & ~trained[:, :-1]).sum()  # every answer follows a prompt
    n_tokens = n_steps.new_tensor(trained.numel()) if mask is None else mask.sum()
    return torch.stack([n_steps, n_tokens])


class Turns(TrainerCallback):
    """Times optimiser steps, each of which waits for a word on the connection and answers with its seconds.

    Two trainers in two processes so take turns, step by step, and whatever else the machine does meets both alike.
    The next batch is fetched in the next turn, outside the time.
    """

    def __init__(self, connection: Connection):
        self._connection = connection

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._connection.recv()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = read_clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._connection.send(read_clock() - self._started)
        if state.global_step < state.max_steps:
            self._connection.recv()
