"""The HTML report: one file that opens from disk without network (`sft.pages`). Knows nothing of models."""

import base64
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from eval.reporting.files import build_details, build_step_details, format_json
from eval.reporting.screenshots import find_recorded_hashes
from eval.reporting.tables import (
    ROOTS_TOLD,
    describe_absent,
    describe_also_right,
    describe_intervals,
    describe_loops,
    describe_progress,
    list_source_rates,
)
from eval.rollouts.run_info import RunInfo
from eval.scoring.breakdowns import SKIPPED, UNREADABLE
from eval.scoring.error_sources import ROOTS
from eval.scoring.matching import HEADLINE, Verdicts
from eval.scoring.other_rules import lands_in_box
from sft.data.data_notes import list_data_notes
from sft.data.image_paths import resolve_image
from sft.data.screenshots import ScreenshotError, hash_screenshot, open_screenshot
from sft.files import write_whole
from sft.pages.frame import PageImage, choose_width, embed_screenshot, link_screenshot, render_page
from sft.rates import Rate, read_rate

Images = Literal["embed", "link"]

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Keys of a step in details.json that the page shows; the others stay in details.json.
_SHOWN = (
    "index",
    "image_id",
    "gold",
    "also_right",
    "predicted",
    "outcomes",
    "roots",
    "memory_before",
    "memory_after",
    "raw_text",
    "parse_status",
    "parse_problem",
    "error",
    "finish_reason",
)
_FIRST_RUN_KEYS = (
    "model_path",
    "base_model",
    "policy",
    "engine",
    "decoding",
    "test_csv",
    "image_root",
    "started",
    "finished",
)


@dataclass(frozen=True)
class Thumbnail(PageImage):
    """A screenshot made small, or linked; `screen` is the (width, height) of the original in pixels."""

    screen: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Thumbnails:
    """All screenshots of a report; `index_of` maps an image id to its place in `images`.

    `problems` names what could not be read; those image ids are not in `index_of`.
    """

    images: Sequence[Thumbnail]
    index_of: Mapping[str, int]
    problems: Sequence[str]


def write_report(
    output_dir: Path,
    verdicts: Verdicts,
    metrics: Mapping[str, Any],
    run_info: RunInfo,
    image_root: Path,
    figures: Sequence[Path] = (),
    *,
    images: Images = "embed",
    comparison: Mapping[str, Any] | None = None,
    others: Verdicts | None = None,
) -> Path:
    """Write report.html and return its path.

    With `images` "link" the screenshots stay where they are and the page names them: a small file, but no longer one
    that can be passed on alone. `comparison` and `others`, the other run's verdicts, set two runs side by side.

    `figures` are PNG files, such as training curves. Screenshots that cannot be read are named once in the log and
    stand as a note where the picture would be.
    """
    steps = [v.step for v in chain(*verdicts.values())]
    expected = find_recorded_hashes(steps, run_info, image_root)
    image_ids, link_from = [step.image_id for step in steps], output_dir if images == "link" else None
    thumbnails = load_thumbnails(image_ids, image_root, link_from, expected)
    page = render_report(verdicts, metrics, run_info, thumbnails, figures, comparison, others)
    return write_page(output_dir, page, thumbnails)


def write_page(output_dir: Path, page: str, thumbnails: Thumbnails) -> Path:
    """Write report.html and return its path; what it lacks is logged once."""
    if thumbnails.problems:
        first = thumbnails.problems[0]
        logger.warning("report.html lacks %d screenshots; the first: %s", len(thumbnails.problems), first)
    path = output_dir / "report.html"
    write_whole(path, page)
    megabytes = path.stat().st_size / 1e6
    logger.info("report.html: %.1f MB with %d distinct screenshots", megabytes, len(thumbnails.images))
    return path


def render_report(
    verdicts: Verdicts,
    metrics: Mapping[str, Any],
    run_info: RunInfo,
    thumbnails: Thumbnails,
    figures: Sequence[Path] = (),
    comparison: Mapping[str, Any] | None = None,
    others: Verdicts | None = None,
) -> str:
    """Return the page."""
    data: dict[str, Any] = {
        "headline": HEADLINE,
        "matchers": list(metrics["matchers"]),
        "tasks": _build_tasks(verdicts, thumbnails),
    }
    if comparison is not None and others is not None:
        data["names"] = comparison["names"]
        _add_other_run(data["tasks"], others)
    parts = [metrics[f"per_{kind}"] for kind in ("group", "application", "familiarity", "task_length")]
    sources = (comparison and comparison.get("error_sources")) or metrics["error_sources"]
    return render_run_page(
        _TEMPLATE,
        data,
        run_info,
        thumbnails,
        metrics=metrics,
        sources=sources,
        roots=ROOTS,
        roots_told=ROOTS_TOLD,
        absent_told=describe_absent(sources),
        headline=HEADLINE,
        predicted_kinds=_list_predicted_kinds(metrics["confusion"]),
        interval_notes=describe_intervals(
            metrics["matchers"], metrics["over_majority"], *parts, *list_source_rates(sources)
        ),
        comparison_notes=describe_intervals(comparison["matchers"]) if comparison else [],
        comparison=comparison,
        has_points=any(v.takes_point for v in chain(*verdicts.values(), *(others or {}).values())),
        progress_text=describe_progress(metrics),
        also_right_text=describe_also_right(metrics["also_right"]) if metrics["also_right"] else "",
        loops_text=describe_loops(metrics),
        figures=[(path.stem, _encode_file(path)) for path in figures],
    )


def render_run_page(
    template: Path, data: Mapping[str, Any], run_info: RunInfo, thumbnails: Thumbnails, **content: Any
) -> str:
    """Return a page of the report's looks: `data` for its script, what is known of the run, and the template's own."""
    filters: dict[str, Callable[..., Any]] = {
        "percent": lambda value: f"{100 * value:.1f}",
        "interval": Rate.format,
        "rate": read_rate,
    }
    content |= {
        "run": _describe_run(run_info),
        "run_json": format_json(run_info.to_json(), indent=2),
        "data_notes": list_data_notes(run_info.data),
    }
    data_json = format_json(data, ensure_ascii=True)
    return render_page(template, data_json, thumbnails.images, content, filters, looks=_TEMPLATE)


def load_thumbnails(
    image_ids: Sequence[str],
    image_root: Path,
    link_from: Path | None = None,
    expected: Mapping[str, str] | None = None,
) -> Thumbnails:
    """Read and shrink every distinct screenshot; files with the same bytes share one thumbnail.

    With `link_from`, the folder of the report, they are linked instead of shrunk and embedded. With `expected`, the
    SHA-256 by image id (`find_recorded_hashes`), a file of other content is left out.

    A name is found as the check finds it (`resolve_image`), links followed. A screenshot that is missing or damaged
    becomes one line of `problems`: a report of a run whose screenshots have been moved is still a report.
    """
    root = image_root.resolve()
    files: dict[str, Path] = {}  # content hash -> one file that has it
    hash_of: dict[str, str] = {}
    problems = []
    for image_id in dict.fromkeys(image_ids):
        try:
            path = resolve_image(image_id, root)
            digest = hash_screenshot(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            if expected is not None and digest != expected.get(image_id):
                problems.append(f"found another picture than the model was shown: {path}; expected that one there")
                continue
            hash_of[image_id] = digest
            files.setdefault(digest, path)
    width = choose_width(len(files))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while it decodes, shrinks and encodes
        made = pool.map(lambda path: _make_thumbnail(path, width, link_from), files.values())
        bar = tqdm(made, total=len(files), desc="Embedding screenshots", unit="file", leave=False)
        by_hash = dict(zip(files, bar))
    problems += [entry for entry in by_hash.values() if isinstance(entry, str)]
    images = {digest: entry for digest, entry in by_hash.items() if isinstance(entry, Thumbnail)}
    place = {digest: i for i, digest in enumerate(images)}
    index_of = {image_id: place[digest] for image_id, digest in hash_of.items() if digest in place}
    return Thumbnails(list(images.values()), index_of, problems)


@lru_cache(maxsize=2048)  # the reports of several modes show the same screenshots
def _make_thumbnail(path: Path, width: int, link_from: Path | None) -> Thumbnail | str:
    try:
        image = open_screenshot(path)
    except ScreenshotError as error:
        return str(error)
    screen = image.size
    made = embed_screenshot(image, width) if link_from is None else link_screenshot(path, link_from)
    return Thumbnail(made.data, made.url, screen)


def _build_tasks(verdicts: Verdicts, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    tasks = build_details(verdicts)
    for task in tasks:
        task["steps"] = [
            {
                **{key: step[key] for key in _SHOWN},
                "lands": lands_in_box(verdict),
                "recorded_memory": step["gold_memory"] if "memory" in step["roots"].values() else None,
                "image": thumbnails.index_of.get(step["image_id"]),
                "box": _scale_box(step, thumbnails),
            }
            for step, verdict in zip(task["steps"], verdicts[task["task_id"]], strict=True)
        ]
    return tasks


def _add_other_run(tasks: list[dict[str, Any]], others: Verdicts) -> None:
    """Put beside each step what the other run predicted there, and its outcomes."""
    for task in tasks:
        for step, verdict in zip(task["steps"], others[task["task_id"]], strict=True):
            other = build_step_details(verdict)
            step["other"] = {key: other[key] for key in ("predicted", "outcomes", "roots", "raw_text")}
            step["other"]["lands"] = lands_in_box(verdict)


def _scale_box(step: Mapping[str, Any], thumbnails: Thumbnails) -> list[float] | None:
    """Return the gold box as [left, top, width, height] in percent of the screenshot, or None.

    `bbox` is in pixels of `screen`; data without `screen` means the screenshot's own pixels.
    """
    place = thumbnails.index_of.get(step["image_id"])
    if step["bbox"] is None or place is None:
        return None
    width, height = step["screen"] or thumbnails.images[place].screen
    x1, y1, x2, y2 = step["bbox"]
    box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    return [round(100 * edge, 3) for edge in box]


def _describe_run(run_info: RunInfo) -> list[tuple[str, str]]:
    """Return what the header says of the run: known keys first, then versions; the rest is in the folded JSON."""
    known = run_info.to_json()
    rows = [(key.replace("_", " "), str(known[key])) for key in _FIRST_RUN_KEYS if known[key]]
    if run_info.environment:
        rows.insert(0, ("environment", str(run_info.environment["module"])))
    if run_info.versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in run_info.versions.items())))
    return rows


def _list_predicted_kinds(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the columns of the confusion table: actions by name, then what could not be read or was not run."""
    kinds = {kind for row in confusion.values() for kind in row}
    return [*sorted(kinds - {UNREADABLE, SKIPPED}), *(kind for kind in (UNREADABLE, SKIPPED) if kind in kinds)]


def _encode_file(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
