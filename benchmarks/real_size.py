"""Train, save, reopen, roll out and merge a model of Qwen3-VL-8B's real size on a CPU: what each takes.

python -m benchmarks.real_size WORK [--json FILE]       # an hour on 2 cores, 35 GB of disk, 24 GB of memory
python -m benchmarks.real_size WORK --tiny              # the same code with a tiny model, to test this program

WORK gets the model folder (published config, chat template and BPE, the last from the package dashscope; random bf16
weights, 17.5 GB), the adapter, the rollout and the merged model. Training uses recipes/qwen3vl.yaml on the
demonstration's screens, at most 1,536 tokens per step. Each phase is a process of its own with a time limit; its
result is written when it ends, and a phase that has finished is not run again when the same command is given again.

Memory is sampled from outside: `anonymous` is what the process needs; what it maps of files beside that (the weights
while they are read) the system may drop.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, publish, save

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/qwen3vl.yaml"
TOKENS_PER_BATCH = 1536
N_ANSWER_TOKENS = 8  # random weights never end an answer
SAMPLE_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for what is written, 35 GB")
    parser.add_argument("--json", type=Path, help="where to save the results too [WORK/result.json alone]")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to test this program")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    if arguments.phase:
        print(json.dumps(PHASES[arguments.phase][0](work, arguments.tiny)))
        return
    os.environ |= {"OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1"}  # of the phases
    work.mkdir(parents=True, exist_ok=True)
    result_json = work / "result.json"
    rows = json.loads(result_json.read_text(encoding="utf-8")) if result_json.is_file() else []
    rows = [row for row in rows if row["outcome"] == "finished"]
    for phase in list(PHASES)[len(rows) :]:
        rows.append(run_phase(phase, work, arguments.tiny))
        result_json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(rows[-1]), flush=True)
        if rows[-1]["outcome"] != "finished":
            sys.exit(f"{phase}: {rows[-1]['outcome']}; see {work}/{phase}.log")
    size = "tiny model" if arguments.tiny else "Qwen3-VL-8B size, random weights"
    table = [{name: row[name] for name in ("phase", "seconds", "anonymous_gb", "with_files_gb")} for row in rows]
    publish(f"{size}, on the CPU", table, describe_machine(), None)
    if arguments.json:
        save(size, rows, describe_machine(), arguments.json)


def run_phase(phase: str, work: Path, tiny: bool) -> dict[str, Any]:
    """Run one phase in a process of its own; return its outcome, seconds, peak memory and figures."""
    command = [sys.executable, "-m", "benchmarks.real_size", str(work), "--phase", phase, *["--tiny"] * tiny]
    limit_s = PHASES[phase][1]
    started = time.monotonic()
    with (work / f"{phase}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        memory = MemoryWatch(process.pid)
        try:
            printed, _ = process.communicate(timeout=limit_s)
            outcome = "finished" if process.returncode == 0 else f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            outcome = f"longer than its {limit_s} s"
        finally:
            memory.stop()
        log.write(printed)
    figures = json.loads(printed.splitlines()[-1]) if outcome == "finished" else {}
    seconds = round(time.monotonic() - started, 1)
    return {"phase": phase, "outcome": outcome, "seconds": seconds, **memory.describe(), **figures}


class MemoryWatch:
    """Samples what a process holds until it is stopped; Linux only."""

    def __init__(self, pid: int):
        self._status = Path(f"/proc/{pid}/status")
        self._anonymous_kb = self._with_files_kb = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def describe(self) -> dict[str, float]:
        return {
            "anonymous_gb": round(self._anonymous_kb * 1024 / 1e9, 2),
            "with_files_gb": round(self._with_files_kb * 1024 / 1e9, 2),
        }

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:  # it has ended
                return
            kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            self._anonymous_kb = max(self._anonymous_kb, kb.get("RssAnon", 0) + kb.get("RssShmem", 0))
            self._with_files_kb = max(self._with_files_kb, sum(kb.values()))


def write_model(work: Path, tiny: bool) -> dict[str, Any]:
    """Write the model folder."""
    from benchmarks.real_models import write_random_weights, write_real_folders

    folder = work / "model"
    if tiny:
        from benchmarks.sides import VOCAB, read_demo_texts
        from demo.tiny_qwen3vl import TinySize, build_tiny_checkpoint

        build_tiny_checkpoint(folder, read_demo_texts(), size=TinySize(VOCAB))
        (folder / "model.safetensors").unlink()
    else:
        write_real_folders(work / "published")["qwen3_vl"].rename(folder)
    return {"gb_of_weights": round(write_random_weights(folder) / 1e9, 3)}


def load(work: Path, tiny: bool) -> dict[str, Any]:
    """Load the model in nf4, as training does."""
    from benchmarks.machine import read_own_mb
    from sft.models.model import count_parameters, count_quantised, find_family, load_model
    from sft.recipe.recipe import parse_recipe

    settings = parse_recipe(build_arguments(work)).model
    model = load_model(settings, find_family(settings.model_name_or_path))
    n_parameters = sum(part["total"] for part in count_parameters(model).values())
    return {
        "parameters": n_parameters,
        "quantised": count_quantised(model),
        "loaded_gb": round(read_own_mb() * 1024**2 / 1e9, 2),
    }


def train(work: Path, tiny: bool) -> dict[str, Any]:
    """Train two steps and save."""
    from sft import run
    from sft.compute.ledger import load_runs

    run.main(build_arguments(work))
    history = json.loads((work / "adapter/trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    figures = load_runs(work / "adapter")[-1].figures
    n_tokens = figures["tokens_text"] + figures["tokens_image"]
    return {
        "losses": [row["loss"] for row in history if "loss" in row],
        "gradient_norms": [row["grad_norm"] for row in history if "grad_norm" in row],
        "tokens_a_step": n_tokens / figures["steps"],
        "seconds_a_step": round(figures["busy_s"] / figures["steps"], 1),
        "flops_measured_by_formula": round(figures["flops_batch_measured"] / figures["flops_batch_formula"], 4),
        "adapter_gb": round((work / "adapter/adapter_model.safetensors").stat().st_size / 1e9, 3),
    }


def build_arguments(work: Path) -> list[str]:
    """Return the command line of the training: the recipe, but for its data, length, and what needs a GPU."""
    keys = {
        "model_name_or_path": work / "model",
        "output_dir": work / "adapter",
        "train_csv": ROOT / "demo/data/train.csv",
        "task_end": 8,
        "val_csv": "null",
        "val_rollout_tasks": 0,
        "eval_strategy": "no",
        "eval_on_start": "false",
        "metric_for_best_model": "loss",
        "save_strategy": "no",
        "load_best_model_at_end": "false",
        "tokens_per_batch": TOKENS_PER_BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "use_cpu": "true",
    }
    return [str(RECIPE), *(text for key, value in keys.items() for text in (f"--{key}", str(value)))]


def roll_out(work: Path, tiny: bool) -> dict[str, Any]:
    """Reopen the saved adapter on its base and roll it out on a task of two steps."""
    from eval import rollout
    from sft.compute.ledger import load_runs

    results = work / "rollout"
    agent = json.loads((work / "adapter/agent_config.json").read_text(encoding="utf-8"))
    short = work / "agent_config.json"
    short.write_text(json.dumps({**agent, "max_answer_tokens": N_ANSWER_TOKENS}), encoding="utf-8")
    arguments = {
        "model_path": work / "adapter",
        "test_csv": write_two_steps(work / "test.csv"),
        "image_root": ROOT / "demo/data",
        "agent_config": short,
        "output_dir": results,
    }
    rollout.main([text for key, value in arguments.items() for text in (f"--{key}", str(value))])
    figures = load_runs(results)[-1].figures
    return {name: figures[name] for name in ("steps", "prompt_tokens", "answer_tokens", "busy_s")}


def write_two_steps(path: Path) -> Path:
    """Write the last two steps of the first test task as a task of their own."""
    with (ROOT / "demo/data/test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["Task_id"] == rows[0]["Task_id"]][-2:]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "Slide_number": i} for i, row in enumerate(rows, 1))
    return path


def merge(work: Path, tiny: bool) -> dict[str, Any]:
    """Merge the adapter into the unquantised base, in bf16."""
    from sft.export.__main__ import merge as merge_adapter

    merged = work / "merged"
    merged.mkdir(exist_ok=True)
    merge_adapter(work / "adapter", work / "model", merged, "bfloat16")
    return {"merged_gb": round(sum(p.stat().st_size for p in merged.glob("*.safetensors")) / 1e9, 3)}


def compare(work: Path, tiny: bool) -> dict[str, Any]:
    """Compare the merged model's logits with the adapter's on the base in bf16 and in nf4."""
    from eval.rollouts.export_check import compare_logits

    return {"logits": compare_logits(work / "adapter", work / "merged", str(work / "model"), "bfloat16", None)}


# Each phase with its limit in seconds; together an hour.
PHASES: dict[str, tuple[Callable[[Path, bool], dict[str, Any]], int]] = {
    "write": (write_model, 300),
    "load": (load, 300),
    "train": (train, 1140),
    "rollout": (roll_out, 780),
    "merge": (merge, 420),
    "compare": (compare, 660),
}


if __name__ == "__main__":
    main()
