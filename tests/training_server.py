"""Runs sft/run.py again and again in real processes, disturbed as told; imports once and forks for every process.

Reads one JSON list a line: attempts {"arguments", "config", "ranks", "signal", "to_rank", "at_step", "delay_s",
"with_children", "max_file_bytes", "limit_s", "scores", "not_finite", "joined"}, all but the first optional. `config`
is an accelerate configuration, whose variables the processes get as from `accelerate launch`; `ranks` without it
starts plain DDP as torchrun does. The signal is sent to one process (or all: `to_rank` null), `with_children` to those
it started too, `delay_s` after it has logged the end of step `at_step` or a later one; what still runs `limit_s` after
it, or after the start, is killed, as is a stopped process once it is the last. A file beyond `max_file_bytes` cannot
be written: from the start on in all processes, or with `at_step` from then on in `to_rank`, which with the signal
SIGXFSZ is killed by the kernel in the middle of such a file. `scores[i]` is what a rollout after step i is scored
with. `not_finite` spoils a gradient: {"name": part of a parameter's name, "at_step", "rank", "value"}. `joined` is how
many batches, which processes or accumulation would share, are one batch of each optimiser step. Answers one JSON list
a line: the exit codes of each attempt, one number for one process. What attempt i printed is in `attempt-i.log`.
"""

import json
import os
import re
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

import eval.predictor  # noqa: F401
import sft.trainer
from sft import run
from sft.errors import run_command
from sft.trainer import TrajectoryTrainer
from sft.training.signals import watch_for_preemption

torch.set_num_threads(1)


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def read_environment(attempt):
    """Return the number of processes and the variables they have in common."""
    n_ranks, environment = attempt.get("ranks", 1), {}
    if config := attempt.get("config"):
        arguments = launch_command_parser().parse_args(["--config_file", config, "--main_process_port", "0", "-"])
        arguments, defaults, _ = _validate_launch_command(arguments)
        n_ranks = arguments.num_processes
        if arguments.use_deepspeed:
            arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            environment = prepare_deepspeed_cmd_env(arguments)[1]
    if n_ranks > 1:
        environment |= {"WORLD_SIZE": str(n_ranks), "LOCAL_WORLD_SIZE": str(n_ranks)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    return n_ranks, environment


def give_scores(scores):
    """Have evaluations score their rollout by the step, without rolling out."""

    def evaluate(self, *args, evaluate=TrajectoryTrainer.evaluation_loop, **kwargs):
        self.validation_rollout = lambda model: {"swa": scores[self.state.global_step]}
        return evaluate(self, *args, **kwargs)

    TrajectoryTrainer.evaluation_loop = evaluate


def spoil_gradient(name, at_step, value):
    """Have one parameter's gradient, and nothing else, be no finite number in one step."""

    def spoil(self, *args, build=TrajectoryTrainer.__init__, **kwargs):
        build(self, *args, **kwargs)
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad and name in n}
        first = next(iter(trained.values()))
        first.register_hook(lambda gradient: gradient * value if self.state.global_step + 1 == at_step else gradient)

    TrajectoryTrainer.__init__ = spoil


class JoinedBatches:
    """Batch sampler of which each batch is n of another's."""

    def __init__(self, others, n):
        self.others, self.n, self.set_epoch = others, n, others.set_epoch

    def __len__(self):
        return -(-len(self.others) // self.n)

    def __iter__(self):
        batches = list(self.others)
        return (sum(batches[i : i + self.n], []) for i in range(0, len(batches), self.n))


def join_batches(n):
    """Have the n batches of an optimiser step be one."""

    def build(recipe, rows, training, batch_size, accumulation=1, build=sft.trainer.build_sampler):
        return JoinedBatches(build(recipe, rows, training, batch_size, n * accumulation), n)

    sft.trainer.build_sampler = build


def run_process(attempt, environment, rank, output):
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.update(environment)
    if "WORLD_SIZE" in environment:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    if attempt.get("signal") == "SIGXFSZ":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: a write beyond the limit fails
    if "at_step" not in attempt:
        limit_files(attempt, os.getpid())
    if "scores" in attempt:
        give_scores(attempt["scores"])
    if (spoilt := attempt.get("not_finite")) and rank == spoilt.get("rank", 0):
        spoil_gradient(spoilt["name"], spoilt["at_step"], float(spoilt["value"]))
    if "joined" in attempt:
        join_batches(attempt["joined"])
    sys.argv = ["sft/run.py", *attempt["arguments"]]
    watch_for_preemption()
    code = 1
    try:
        run_command(run.main)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, flush=True)
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(repr(error), flush=True)
    os._exit(code)


def limit_files(attempt, process):
    if limit := attempt.get("max_file_bytes"):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, limit))


def read_step(log, offset):
    found = re.findall(r"step (\d+) done", log.read_text()[offset:]) if log.is_file() else []
    return int(found[-1]) if found else 0


def run_attempt(attempt, number):
    folder = Path(attempt["arguments"][attempt["arguments"].index("--output_dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"attempt-{number}.log"
    output.unlink(missing_ok=True)
    n_ranks, environment = read_environment(attempt)
    to_rank = attempt.get("to_rank", 0)
    log = folder / f"logs/rank-{to_rank or 0}.log"
    offset = len(log.read_text()) if log.is_file() else 0
    children = []
    for rank in range(n_ranks):
        children.append(os.fork())
        if children[-1] == 0:
            run_process(attempt, environment, rank, output)
    codes, sent, started = {}, "at_step" not in attempt, time.monotonic()
    while len(codes) < n_ranks:
        for child in children:
            if child not in codes and (status := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(status[1])
        if not sent and read_step(log, offset) >= attempt["at_step"]:
            time.sleep(attempt.get("delay_s", 0))
            for child in children if to_rank is None else [children[to_rank]]:
                limit_files(attempt, child)
                if "max_file_bytes" in attempt:
                    continue
                started_by_it = Path(f"/proc/{child}/task/{child}/children").read_text().split()
                for process in (*map(int, started_by_it if attempt.get("with_children") else []), child):
                    os.kill(process, getattr(signal, attempt["signal"]))
            sent, started = True, time.monotonic()
        is_last_stopped = attempt.get("signal") == "SIGSTOP" and len(codes) == n_ranks - 1
        if is_last_stopped or time.monotonic() - started > attempt.get("limit_s", 600):
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return codes[children[0]] if n_ranks == 1 else [codes[child] for child in children]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    for line in sys.stdin:
        print(json.dumps([run_attempt(attempt, i) for i, attempt in enumerate(json.loads(line))]), file=answers)
        answers.flush()
