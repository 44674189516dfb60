"""Turn raw recordings into the demonstration data: CSVs by split, screenshots, elements, manifest.

    python -m demo.capture.build --raw raw/orthanc raw/ohif --out demo/data

The same recordings give the same bytes. Files of an earlier build are replaced. Knows nothing of browsers.
"""

import argparse
import csv
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from demo.clinic.screenshots import Encoded, encode_screenshots, sha256

SEED = "gui-agents-demo-1"
VAL_SHARE, TEST_SHARE = 0.10, 0.22
SPLITS = ("train", "val", "test")
COLUMNS = [
    "Task_id", "Slide_number", "Image_id", "Instruction", "Output", "Grounding", "Application", "Workflow", "Group",
]  # fmt: skip
MAX_MB = 34

Task = dict
Row = dict[str, str | int]


def main() -> None:
    args = parse_arguments()
    tasks = load_tasks(args.raw)
    images = encode_screenshots(list_screenshots(tasks), args.cache or args.raw[0].parent / "webp_cache", args.workers)
    splits = assign_splits(tasks)
    rows = {split: [] for split in SPLITS}
    for task in tasks:
        rows[splits[task["task_id"]]] += build_rows(task, splits[task["task_id"]], images)
    check_rows(rows)
    write_data(args.out, tasks, rows, images, args.raw)
    print_table(args.out, tasks, splits, images)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, nargs="+", required=True, help="folders that record.py wrote")
    parser.add_argument("--out", type=Path, default=Path("demo/data"))
    parser.add_argument("--cache", type=Path, help="encoded screenshots, kept between builds; beside the raw folders")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def load_tasks(folders: list[Path]) -> list[Task]:
    """Load every recorded task, in order of task id; refuse two tasks with the same goal."""
    tasks = []
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name != "versions.json":
                tasks.append(json.loads(path.read_text()) | {"folder": folder})
    goals = Counter(task["goal"] for task in tasks)
    if repeated := [goal for goal, count in goals.items() if count > 1]:
        raise ValueError(f"goals of more than one task, make them differ: {repeated}")
    for task in tasks:
        for step in task["steps"]:
            if step["action"] == "TEXT" and step["text"] not in task["goal"]:
                raise ValueError(
                    f"{task['task_id']}: step {step['step']} types {step['text']!r}, which the goal lacks"
                )
    return sorted(tasks, key=lambda task: task["task_id"])


def assign_splits(tasks: list[Task]) -> dict[str, str]:
    """Map task id to split; new workflows are test only.

    Tasks are ranked within their workflow by a seeded hash of the goal, so what is recorded for one workflow never
    moves a task of another.
    """
    by_workflow = defaultdict(list)
    splits = {}
    for task in tasks:
        if task["group"] == "new_workflow":
            splits[task["task_id"]] = "test"
        else:
            by_workflow[task["application"], task["workflow"]].append(task)
    for members in by_workflow.values():
        members.sort(key=lambda task: hashlib.sha256(f"{SEED}|{task['goal']}".encode()).hexdigest())
        n_test, n_val = (max(1, round(share * len(members))) for share in (TEST_SHARE, VAL_SHARE))
        for rank, task in enumerate(members):
            splits[task["task_id"]] = "test" if rank < n_test else "val" if rank < n_test + n_val else "train"
    return splits


def build_rows(task: Task, split: str, images: Encoded) -> list[Row]:
    """Make a task's CSV rows, one a step."""
    group = task["group"] if split == "test" else split
    rows = []
    for step in task["steps"]:
        grounding = {"bbox": step["bbox"], "screen": [1280, 800], "application": task["application"]}
        rows.append(
            {
                "Task_id": task["task_id"],
                "Slide_number": step["step"],
                "Image_id": images[task["folder"] / step["png"]][0],
                "Instruction": task["goal"],
                "Output": to_json(build_output(task, step)),
                "Grounding": to_json(grounding),
                "Application": task["application"],
                "Workflow": task["workflow"],
                "Group": group,
            }
        )
    return rows


def build_output(task: Task, step: dict) -> dict:
    """Make the answer of a step: the action, and the memory after it."""
    last_step_of = {other["subtask"]: other["step"] for other in task["steps"]}
    completed = [item for item in task["subtasks"] if last_step_of[item] <= step["step"]]
    output = {key: step[key] for key in ("action", "target", "text", "direction") if key in step}
    output["short_term"] = {
        "last_action": step["action"],
        "last_target": step["target"],
        "last_observation": step["observation"],
    }
    output["long_term"] = {
        "completed_subtasks": completed,
        "remaining_subtasks": [item for item in task["subtasks"] if item not in completed],
    }
    return output


def check_rows(rows: dict[str, list[Row]]) -> None:
    """Refuse two equal states (goal, screenshot, memory) that ask for different actions."""
    wanted = {}
    conflicts = []
    memory = ""
    for row in (row for split in SPLITS for row in rows[split]):
        output = json.loads(row["Output"])
        memory = "" if row["Slide_number"] == 1 else memory
        state = row["Instruction"], row["Image_id"], memory
        action = {key: output.get(key) for key in ("action", "target", "text", "direction")}
        if wanted.setdefault(state, action) != action:
            conflicts.append(f"{row['Task_id']} step {row['Slide_number']}: {action}, elsewhere {wanted[state]}")
        memory = to_json([output["short_term"], output["long_term"]])
    if conflicts:
        raise ValueError("equal states with different actions:\n" + "\n".join(conflicts))


def write_data(out: Path, tasks: list[Task], rows: dict[str, list[Row]], images: Encoded, raw: list[Path]) -> None:
    """Write everything into `out`, and nothing but this build's images into its image folder."""
    shutil.rmtree(out / "images", ignore_errors=True)
    (out / "images").mkdir(parents=True)
    for name, content in dict(images.values()).items():
        (out / name).write_bytes(content)
    for split in SPLITS:
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[split])
    (out / "elements.jsonl").write_text(build_elements(tasks, images), encoding="utf-8")
    manifest = build_manifest(out, rows, raw)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def build_elements(tasks: list[Task], images: Encoded) -> str:
    """List the page's elements on every distinct screenshot, one JSON line each."""
    lines = {}
    for task in tasks:
        for step in task["steps"]:
            image = images[task["folder"] / step["png"]][0]
            line = {"image": image, "application": task["application"], "elements": step["elements"]}
            lines.setdefault(image, to_json(line))
    return "".join(lines[image] + "\n" for image in sorted(lines))


def build_manifest(out: Path, rows: dict[str, list[Row]], raw: list[Path]) -> dict:
    """Say what the data holds, where it came from, and the hashes that prove it."""
    versions = {}
    for folder in raw:
        versions |= json.loads((folder / "versions.json").read_text())
    counts = {}
    for split in SPLITS:
        actions = Counter(json.loads(row["Output"])["action"] for row in rows[split])
        counts[split] = {
            "tasks": len({row["Task_id"] for row in rows[split]}),
            "steps": len(rows[split]),
            "tasks_by_group": dict(
                sorted(Counter(row["Group"] for row in rows[split] if row["Slide_number"] == 1).items())
            ),
            "actions": dict(sorted(actions.items())),
        }
    names = [f"{split}.csv" for split in SPLITS] + ["elements.jsonl"]
    return {
        "seed": SEED,
        "split": {"val_share": VAL_SHARE, "test_share": TEST_SHARE, "by": "task, within each known workflow"},
        "screen": [1280, 800],
        "counts": counts,
        "images": len({row["Image_id"] for split in SPLITS for row in rows[split]}),
        "sha256": {name: sha256((out / name).read_bytes()) for name in names},
        "versions": dict(sorted(versions.items())),
    }


def list_screenshots(tasks: list[Task]) -> list[Path]:
    return [task["folder"] / step["png"] for task in tasks for step in task["steps"]]


def print_table(out: Path, tasks: list[Task], splits: dict[str, str], images: Encoded) -> None:
    """Print what was built, by application and as a whole."""
    groups = [
        (name, [t for t in tasks if t["application"] == name]) for name in sorted({t["application"] for t in tasks})
    ]
    for name, members in [*groups, ("all", tasks)]:
        steps = [step for task in members for step in task["steps"]]
        actions = Counter(step["action"] for step in steps)
        by_split = Counter(splits[task["task_id"]] for task in members)
        new = sum(task["group"] == "new_workflow" for task in members)
        distinct = dict(images[path] for path in list_screenshots(members))
        mix = "  ".join(f"{action} {count} ({count / len(steps):.0%})" for action, count in actions.most_common())
        print(f"{name}: {len(members)} tasks, {len(steps)} steps, {len(steps) / len(members):.1f} steps a task")
        print(f"  {mix}")
        print(
            f"  {', '.join(f'{split} {by_split[split]}' for split in SPLITS)} tasks ({new} of them of new workflows)"
        )
        print(f"  {len(distinct)} distinct screenshots, {sum(map(len, distinct.values())) / 1e6:.1f} MB")
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {size_mb:.1f} MB" + (f", MORE THAN {MAX_MB} MB" if size_mb > MAX_MB else ""))


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
