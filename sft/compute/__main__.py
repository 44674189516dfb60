"""Write the compute report of a project from the ledgers its runs have left.

python -m sft.compute OUTPUTS_DIR [MORE_DIRS ...]

Every training and rollout keeps `compute_ledger.jsonl` in its output folder. This reads all of them below the folders
given, with every metrics.json, and writes into the first folder: compute_report.json, compute_report.md,
compute_report_summary.csv and plots of memory, throughput and loss. What only an author can know is asked for in
compute_author.yaml there: fill it in and run the command again.
"""

import argparse
from pathlib import Path

from sft.compute.author import load_author_fields
from sft.compute.fields import (
    Field,
    build_breakdown,
    build_machine_fields,
    build_model_fields,
    build_timeline,
)
from sft.compute.ledger import LEDGER_NAME, load_runs
from sft.compute.output import plot_runs, sort_fields, write_csv, write_json, write_markdown
from sft.compute.results import list_log_files, load_performance
from sft.compute.totals import build_compute_fields
from sft.errors import UserError, run_command

NOTES = {
    "GPU hours": "GPUs a run held, times its wall-clock time; a killed run counts up to its last sign of life",
    "CPU hours": "processor time used by the run's processes and their children, not cores times time",
    "FLOPs": "a multiply and an add are two; the first batch is counted with torch's table, other batches are "
    "estimated by the closed formula scaled by measured / formula; rollouts by tokens",
    "energy": "codecarbon, offline, of the run's own process (of the machine where a run has several processes on it)",
    "seconds a step": "evaluations and checkpoints are left out of tokens a second",
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUTPUTS_DIR", help="where the runs' folders are")
    folders: list[Path] = [folder.resolve() for folder in parser.parse_args(argv).folders]
    runs = [run for folder in folders if folder.is_dir() for run in load_runs(folder)]
    if not runs:
        found = ", ".join(map(str, folders))
        raise UserError(f"found no {LEDGER_NAME} below {found}; expected the output folder of a training or rollout")
    runs = list({(run.folder, run.run): run for run in sorted(runs, key=lambda run: run.start["time"])}.values())
    fields = [
        *build_machine_fields(runs),
        *load_author_fields(folders[0]),
        *load_performance(folders),
        *build_model_fields(runs),
        *build_compute_fields(runs),
        *build_breakdown(runs),
        *build_timeline(runs),
        *list_log_files(folders),
        *(Field("notes", name, text, "author") for name, text in NOTES.items()),
    ]
    fields = sort_fields(fields)
    plots = plot_runs(folders[0], runs)
    report = folders[0] / "compute_report.md"
    write_json(report.with_suffix(".json"), fields, runs)
    write_markdown(report, fields, plots)
    write_csv(folders[0] / "compute_report_summary.csv", fields)
    missing = sum(str(field.value).startswith("missing") for field in fields)
    print(f"{len(runs)} runs, {len(fields)} fields, {missing} of them missing: {report}")


if __name__ == "__main__":
    run_command(main)
