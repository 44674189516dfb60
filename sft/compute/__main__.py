"""Write the compute report of a project from the ledgers its runs have left.

python -m sft.compute OUTPUTS_DIR [MORE_DIRS ...]

Every training and rollout keeps `compute_ledger.jsonl` in its output folder. This reads all of them below the folders
given, with every metrics.json, and writes into the first folder: compute_report.json, compute_report.md,
compute_report_summary.csv and plots of memory, throughput and loss. What only an author can know is asked for in
compute_author.yaml there: fill it in and run the command again.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.compute.fields import SECTIONS, Field, Project, build_fields, load_author
from sft.compute.ledger import LEDGER_NAME, RunRecord, load_runs
from sft.compute.plots import plot_runs
from sft.errors import UserError, run_command
from sft.files import write_whole
from sft.markdown import as_markdown_text
from sft.verbs import build_parser


def main(argv: list[str]) -> None:
    parser = build_parser("python -m sft.compute", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUTPUTS_DIR", help="where the runs' folders are")
    folders: list[Path] = [folder.resolve() for folder in parser.parse_args(argv).folders]
    runs = [run for folder in folders if folder.is_dir() for run in load_runs(folder)]
    if not runs:
        found = ", ".join(map(str, folders))
        raise UserError(f"found no {LEDGER_NAME} below {found}; expected the output folder of a training or rollout")
    runs = list({(run.folder, run.run): run for run in sorted(runs, key=lambda run: run.start["time"])}.values())
    fields = build_fields(Project(runs, folders, load_author(folders[0])), SECTIONS)
    plots = plot_runs(folders[0], runs)
    report = folders[0] / "compute_report.md"
    write_whole(report.with_suffix(".json"), format_json(fields, runs))
    write_whole(report, format_markdown(fields, plots))
    write_whole(folders[0] / "compute_report_summary.csv", format_csv(fields))
    missing = sum(str(field.value).startswith("missing") for field in fields)
    print(f"{len(runs)} runs, {len(fields)} fields, {missing} of them missing: {report}")


def format_json(fields: Sequence[Field], runs: Sequence[RunRecord]) -> str:
    """Render every field by section, and each run with its outcome and figures."""
    sections: dict[str, dict[str, Any]] = {}
    for field in fields:
        sections.setdefault(field.section, {})[field.name] = {"value": field.value, "status": field.status}
    content = {"sections": sections, "runs": [_describe_run(run) for run in runs]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def format_csv(fields: Sequence[Field]) -> str:
    """Render the columns Section, Field, Value, Status."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("Section", "Field", "Value", "Status"))
    writer.writerows((f.section, f.name, format_value(f.value), f.status) for f in fields)
    return file.getvalue()


def format_markdown(fields: Sequence[Field], plots: Sequence[Path]) -> str:
    """Render one table a section."""
    lines = ["# Compute report", ""]
    for section in SECTIONS:
        rows = [f for f in fields if f.section == section]
        lines += [f"## {section[0].upper()}{section[1:]}", "", "| field | value | status |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(map(as_markdown_text, (f.name, format_value(f.value), f.status)))} |" for f in rows]
        lines.append("")
    if plots:
        lines += ["## Plots", "", *(f"![{plot.stem}]({plot.name})" for plot in plots), ""]
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Render a value for people: thousands separated, small numbers with four digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 or abs(value) >= 1e9 else f"{value:,.1f}"


def _describe_run(run: RunRecord) -> dict[str, Any]:
    start = {k: v for k, v in run.start.items() if k not in ("event", "host", "pid", "process_started")}
    ranks = {str(rank): figures for rank, figures in run.figures_of_rank.items()}
    return {**start, "outcome": run.outcome, "error": run.error or "none", "wall_s": run.wall_s, "ranks": ranks}


if __name__ == "__main__":
    run_command(main)
