"""20,000 damaged rows: each ends in a validation message or is a row to train on, never in another exception."""

import json
import random

import pytest
from trajectory_samples import build_task, format_csv, write_screenshots

from sft.agent import AgentConfig
from sft.answers import format_answer, parse_answer
from sft.data.load import read_task_set
from sft.data.problems import TrajectoryError
from sft.data.table import Table, parse_csv
from sft.json_text import dump_json
from sft.memory import lagged
from sft.prompts import build_prompt

N_CHUNKS, N_MUTATIONS, N_TASKS = 20, 1_000, 100
AGENT = AgentConfig()
HUGE = 5_000_000

ATOMS = (
    *("'", "None", "nan", "{'a': None}", "['a' 'b']", "array([1, 2])", "np.float64(1.5)", "(1, 2)", "...", "b'x'"),
    *("", " ", "null", "true", "NaN", "Infinity", "-0", "1e999", "9" * 5_000, "{}", "[]", '""', "{", "}", "[[", "\\"),
    *(
        "\x01",
        "\x1b[31m",
        "\x7f",
        "\u202e\u2066",
        "\ufeff",
        "\ufffd",
        "\u2028",
        "\x85",
        "\r",
        "\n",
        "\t",
        "'",
        '"',
        ";",
    ),
    *("患者", "🙂", "e\u0301", "\\ud800", "\\u0000", "<|image_pad|>", "<|im_end|>", "..", "/etc/passwd", "C:\\x.png"),
    *("-1", "0", "1.5", "٣", "1e3", "COMPLETE", "click", "HOVER", "a" * 3_000, "[1,2,3,4]", "\u200b", "%00"),
)


def _swap(rng, row, column):
    row[column] = row[rng.choice(list(row))]


def _truncate(rng, row, column):
    row[column] = row[column][: rng.randrange(len(row[column]) + 1)]


def _insert(rng, row, column):
    at = rng.randrange(len(row[column]) + 1)
    row[column] = row[column][:at] + rng.choice(ATOMS) + row[column][at:]


def _replace(rng, row, column):
    row[column] = rng.choice(ATOMS)


def _flip(rng, row, column):
    if row[column]:
        at = rng.randrange(len(row[column]))
        row[column] = (
            row[column][:at] + chr(rng.choice((rng.randrange(1, 0x250), 0x202E, 0x1F642))) + row[column][at + 1 :]
        )


def _nest(rng, row, column):
    depth = rng.choice((5, 40, 1_000, 20_000))
    row[column] = '{"action":"CLICK","target":' + '{"a":' * depth + "1" + "}" * depth + "}"


def _change_json(rng, row, column):
    """Put a wrong type somewhere into a cell that is JSON."""
    column = rng.choice(("Output", "Grounding"))
    try:
        value = json.loads(row[column])
    except ValueError:
        return
    wrong = rng.choice((None, True, -1, 1.5, 10**30, float("nan"), float("inf"), [], [[]], {}, {"a": []}, "x" * 2_500))
    place = value
    while isinstance(place, dict) and place:
        key = rng.choice(list(place))
        if isinstance(place[key], dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        place[rng.choice((key, "text", "direction", "short_term", "bbox"))] = wrong
        break
    row[column] = json.dumps(value)


def _grow(rng, row, column):
    target = '{"action":"CLICK","target":"%s"}' % ("y" * HUGE)
    row[column] = rng.choice(('"' + "a" * HUGE + '"', "[" * HUGE, "x" * HUGE, target))


MUTATIONS = (_swap, _truncate, _insert, _replace, _flip, _change_json, _nest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations")
    write_screenshots(path)
    return path


def _mutate_tasks(rng, n_huge):
    """Return the CSV of a hundred tasks, each with one damaged row."""
    rows = []
    for number in range(N_TASKS):
        task = build_task(f"t{number}", f"Open the study of DOE{number:03d}", 3, 2, number)
        damaged = rng.choice(task)
        mutate = _grow if number < n_huge else rng.choice(MUTATIONS)
        mutate(rng, damaged, rng.choice(list(damaged)))
        rows += task
    return format_csv(rows).replace("\0", "\x01").encode("utf-8", "replace")


def _load(folder, data):
    """Load a CSV; rows that name no task, which are refused in any case, are taken out and told to be refused."""
    path = folder / "tasks.csv"
    rows, bad_rows = parse_csv(data, path)
    try:
        return read_task_set(Table(path, rows, "", folder, bad_rows), on_bad_rows="quarantine", show_progress=False)
    except TrajectoryError as error:
        homeless = {problem.row for problem in error.problems if problem.task_id is None}
        assert homeless
        assert all("found" in problem.message for problem in error.problems)
    rows = [(number, cells) for number, cells in rows if number not in homeless]
    bad_rows = tuple(problem for problem in bad_rows if problem.task_id is not None)
    return read_task_set(Table(path, rows, "", folder, bad_rows), on_bad_rows="quarantine", show_progress=False)


def _check_usable(trajectory):
    """Make sure a task that was taken can be trained on and replayed: prompts render, answers read back as gold."""
    for step, memory in zip(trajectory.steps, lagged(trajectory.golds, "model", AGENT.memory_budget_chars)):
        json.dumps(build_prompt(trajectory.instruction, memory, AGENT)).encode("utf-8")
        text = format_answer(step.gold, AGENT)
        text.encode("utf-8")
        parsed = parse_answer(text, AGENT)
        assert parsed.answer is not None, (trajectory, text)
        assert parsed.answer.action == step.gold.action
        assert dump_json(parsed.answer.short_term or {}) == dump_json(step.gold.short_term or {})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_CHUNKS))
def test_damaged_rows_are_refused_in_words_or_can_be_used(folder, seed):
    rng = random.Random(seed)
    n_used = n_refused = 0
    for batch in range(N_MUTATIONS // N_TASKS):
        tasks = _load(folder, _mutate_tasks(rng, n_huge=2 if batch == 0 else 0))
        for trajectory in tasks.trajectories:
            _check_usable(trajectory)
        for task in tasks.quarantined:
            assert task.problems
            assert all("found" in problem.message for problem in task.problems), task
        n_used, n_refused = n_used + len(tasks.trajectories), n_refused + len(tasks.quarantined)
    assert n_used > 200
    assert n_refused > 200


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_of_a_file_are_refused_in_words_or_can_be_used(folder, seed):
    rng = random.Random(1_000 + seed)
    n_used = n_quarantined = n_refused = 0
    whole = format_csv([row for n in range(3) for row in build_task(f"t{n}", f"Open DOE{n}", 3, 2, n)]).encode()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), 0x22, 0x2C, 0x0A))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path = folder / "tasks.csv"
        try:
            rows, bad_rows = parse_csv(bytes(data), path)
            tasks = read_task_set(
                Table(path, rows, "", folder, bad_rows), on_bad_rows="quarantine", show_progress=False
            )
        except TrajectoryError as error:
            assert error.problems and all("found" in problem.message for problem in error.problems)
            n_refused += 1
            continue
        for trajectory in tasks.trajectories:
            _check_usable(trajectory)
        for task in tasks.quarantined:
            assert task.problems and all("found" in problem.message for problem in task.problems), task
        n_used, n_quarantined = n_used + len(tasks.trajectories), n_quarantined + len(tasks.quarantined)
    assert n_used > 100 and n_quarantined > 50 and n_refused > 50, (n_used, n_quarantined, n_refused)
