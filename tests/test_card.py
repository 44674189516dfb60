"""Which scores a model card shows, under which notes, and which of them reach the Hub and the compute report."""

import pytest
from huggingface_hub import ModelCard
from rollout_samples import RUN_INFO, judge, make_task

from eval.reporting.files import format_json
from eval.reporting.publish import find_figures
from eval.rollouts.run_info import RunInfo
from eval.scoring.comparison import compare_runs
from eval.scoring.metrics import compute_metrics
from sft.compute.fields import Project, list_scores
from sft.errors import UserError
from sft.evaluations import add_evaluation, load_evaluations
from sft.training.card import write_card

RIGHT, WRONG = ("CLICK", "CLICK"), ("CLICK", "TEXT")
INFO = {**RUN_INFO, "engine": "hf", "decoding": "free", "test_csv_sha256": "c" * 64, "shard": None, "data": {}}
OWN = [step for i in range(12) for step in make_task(f"t{i}", [RIGHT, RIGHT if i % 2 else WRONG])]
TEACHER = [step for i in range(12) for step in make_task(f"t{i}", [RIGHT, WRONG if i == 0 else RIGHT])]


def score(results, mode):
    return compute_metrics(judge(results), mode=mode, n_resamples=200)


@pytest.fixture
def folder(tmp_path):
    """A model folder with weights and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def read_card(folder):
    text = write_card(folder).read_text()
    return text, ModelCard(text).data.eval_results or []


@pytest.mark.parametrize(
    ("change", "n_steps"),
    [({}, 4), ({"engine": "vllm"}, 12), ({"decoding": "constrained"}, 12), ({"test_csv_sha256": "d" * 64}, 12)],
    ids=["fewer tasks", "another engine", "other decoding", "another file"],
)
def test_gap_is_not_made_of_runs_of_other_steps_or_settings(folder, change, n_steps):
    add_evaluation(folder, INFO, score(OWN, "own"))
    add_evaluation(folder, {**INFO, **change}, score(TEACHER[: 2 * n_steps], "teacher"))
    assert "Exposure gap: not measured" in read_card(folder)[0]


def test_gap_of_two_matching_runs_says_that_it_is_not_paired(folder):
    add_evaluation(folder, INFO, score(TEACHER, "teacher"))
    add_evaluation(folder, INFO, score(OWN, "own"))
    assert "minus own), of two runs, not paired: +20.8 points by action" in read_card(folder)[0]


def test_gap_of_mode_all_is_paired_and_has_its_interval(folder):
    gap = compare_runs(judge(TEACHER), judge(OWN), n_resamples=200)["matchers"]
    add_evaluation(folder, INFO, score(TEACHER, "teacher"))
    add_evaluation(folder, INFO, score(OWN, "own"), gap)
    shown = gap["action"]["swa"]["difference"].format(signed=True)
    assert shown.startswith("+20.8 [") and f"paired by task: {shown} points by action" in read_card(folder)[0]


def test_scores_of_weights_that_were_trained_over_are_shown_no_longer(folder):
    add_evaluation(folder, INFO, score(OWN, "own"))
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    add_evaluation(folder, INFO, score(TEACHER, "teacher"))
    assert [evaluation["mode"] for evaluation in load_evaluations(folder)] == ["teacher"]
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    assert [evaluation["mode"] for evaluation in load_evaluations(folder)] == ["own"]


def test_score_on_unseen_tasks_reaches_the_hub(folder):
    add_evaluation(folder, INFO, score(OWN, "own"))
    text, results = read_card(folder)
    assert {r.metric_name for r in results} >= {"SWA by action, own", "TA by action_target, own"}
    assert "Not unseen" not in text


@pytest.mark.parametrize(("part", "meaning"), [("train", "trained on"), ("val", "chosen by")])
def test_score_on_tasks_of_the_training_is_marked_and_stays_off_the_hub(folder, part, meaning):
    add_evaluation(folder, {**INFO, "data": {"trained_on": {part: ["t1", "t2"]}}}, score(OWN, "own"))
    text, results = read_card(folder)
    assert f"| **Not unseen: the model was {meaning} 2 of these tasks.** |" in text
    assert results == [] and "t1" not in text  # a card is published, task ids are not


def test_tasks_of_applications_never_trained_on_have_rows_of_their_own(folder):
    unseen = [step for i in range(4) for step in make_task(f"u{i}", [WRONG, RIGHT], application="Orthanc")]
    metrics = compute_metrics(judge(OWN + unseen), mode="own", n_resamples=200, unseen_applications=["Orthanc"])
    add_evaluation(folder, {**INFO, "data": {"unseen_applications": ["Orthanc"]}}, metrics)
    text, results = read_card(folder)
    assert "| test.csv, seen applications, 12 tasks | own | action | 75.0 [" in text
    assert "| test.csv, unseen applications, 4 tasks | own | action | 50.0 [" in text
    assert "| **Applications that the model was never trained on: Orthanc.** |" in text
    assert len(results) == 4  # of all tasks: a part of them is no result of the file


def test_task_accuracy_has_the_exact_interval(folder):
    add_evaluation(folder, INFO, score([s for i in range(22) for s in make_task(f"t{i}", [WRONG])], "own"))
    assert "| 0.0 [0.0, 15.4] |" in read_card(folder)[0]


def test_name_of_the_data_ends_no_cell_and_is_no_html(folder):
    add_evaluation(folder, {**INFO, "test_csv": "a|b\n<img src=x>.csv"}, score(OWN, "own"))
    text = read_card(folder)[0]
    assert "| a\\|b &lt;img src=x>.csv, " in text
    assert "<img" not in text.partition("---\n\n")[2]


def test_half_a_line_of_scores_is_named_with_the_way_out(folder):
    add_evaluation(folder, {**INFO, "test_csv": "a\u2028b.csv"}, score(OWN, "own"))  # ends a line for str.splitlines
    assert [e["csv"] for e in load_evaluations(folder)] == ["a\u2028b.csv"]
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"weights_sha256": "')
    with pytest.raises(UserError, match=r"evaluations\.jsonl: line 2: found something unreadable .*; remove the line"):
        write_card(folder)


@pytest.mark.parametrize(
    ("change", "is_listed"),
    [({}, True), ({"policy": "replay"}, False), ({"policy": "empty"}, False), ({"shard": [0, 2]}, False)],
)
def test_compute_report_lists_whole_runs_of_a_model_alone(tmp_path, change, is_listed):
    metrics = {**score(OWN, "own"), "run": {**INFO, **change, "data": {"trained_on": {"val": ["t1"]}}}}
    (tmp_path / "metrics.json").write_text(format_json(metrics))
    names = [name for name, *_ in list_scores(Project([], [tmp_path]))]
    expected = f"{tmp_path.name}, own; Not unseen: the model was chosen by 1 of these tasks: SWA by action (%), ours"
    assert (expected in names) == is_listed
    assert is_listed or names == ["metrics"]


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "training_data.json", "versions.json"])
def test_link_that_would_bring_a_file_of_elsewhere_into_the_card_is_refused(folder, tmp_path, name):
    (tmp_path / "private").write_text("password: 1234")
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=f"found links to files elsewhere: {name}"):
        write_card(folder)
    assert (tmp_path / "private").read_text() == "password: 1234"


def test_link_in_the_place_of_the_scores_is_not_written_through(folder, tmp_path):
    (tmp_path / "private").write_text("mine")
    (folder / "evaluations.jsonl").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"evaluations\.jsonl: found a link, which would be written through"):
        add_evaluation(folder, INFO, score(OWN, "own"))
    assert (tmp_path / "private").read_text() == "mine"


def test_curves_that_are_a_link_to_a_file_elsewhere_are_in_no_report(folder, tmp_path):
    info = RunInfo(**{**RUN_INFO, "model_path": str(folder)}, n_steps=1)
    (tmp_path / "private.png").write_bytes(b"mine")
    (folder / "training_curves.png").symlink_to(tmp_path / "private.png")
    assert find_figures(info) == []
    (folder / "training_curves.png").unlink()
    (folder / "training_curves.png").write_bytes(b"curves")
    assert find_figures(info) == [folder / "training_curves.png"]
