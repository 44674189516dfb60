"""Trainer callbacks that time optimiser steps. Apart, so that no command line waits for transformers."""

import time
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Clock(TrainerCallback):
    """Times optimiser steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


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
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._connection.send(time.perf_counter() - self._started)
        if state.global_step < state.max_steps:
            self._connection.recv()
