"""Points: from the recorded boxes to what is taught, written, read back, scored and carried out."""

import json
import logging
from dataclasses import replace

import pytest
from trajectory_samples import TINY_AGENT, build_task, write_trajectories

from eval import rollout
from sft import run
from sft.actions import DEFAULT_ACTIONS, ActionType, format_action, give_point, to_pixels
from sft.agent import AgentConfig, agent_from_json, agent_to_json
from sft.answers import Answer, format_answer, parse_answer
from sft.check import __main__ as check
from sft.data.boxes import compute_point
from sft.data.load import TrajectoryError, load_trajectories
from sft.data.train_val import load_task_split
from sft.memory import EMPTY_MEMORY, update
from sft.prompts import build_system_text
from sft.recipe.recipe import RecipeError, parse_recipe
from sft.recipe.settings import DataSettings

AGENT = AgentConfig(points=True)
# of the sample rows: bbox [10, 20, 90, 40] on a screen of 320x192, so the centre is at 50 / 320 and 30 / 192
CENTRE = [156, 156]


def build_tasks(n_tasks, n_steps=3):
    """Return the rows of tasks that begin with CLICK, TEXT, SCROLL and end with COMPLETE."""
    return [row for i in range(1, n_tasks + 1) for row in build_task(f"t{i}", f"Open the study of DOE00{i}", n_steps)]


def write(folder, rows, **cells):
    """Write rows, some cells of the first one changed."""
    rows[0] = {**rows[0], **{name: json.dumps(value) for name, value in cells.items()}}
    return write_trajectories(folder, rows)


def load(path, agent=AGENT):
    return load_trajectories(path, actions=agent.actions, show_progress=False)


@pytest.mark.parametrize(
    ("box", "screen", "point"),
    [
        ((100, 200, 300, 400), (1000, 800), [200, 375]),
        ((0, 0, 1000, 800), (1000, 800), [500, 500]),
        ((52, 163, 205, 196), (1280, 800), [100, 224]),  # 128.5 / 1280 = 0.1004, 179.5 / 800 = 0.2244
        ((990, 790, 1000, 800), (1000, 800), [995, 994]),  # 795 / 800 = 0.99375
        ((999.5, 0, 1000.9, 0), (1000, 800), [1000, 0]),  # rounded up over the edge
        ((-1, 10, 0, 10), (1000, 1000), [0, 10]),
    ],
)
def test_point_is_the_centre_of_the_box_in_thousandths_of_the_screen(box, screen, point):
    assert compute_point(box, screen) == point


@pytest.mark.parametrize(
    ("point", "pixels"),
    [([200, 375], (200, 300)), ([0, 0], (0, 0)), ([1000, 1000], (999, 799)), ([999.9, 0.5], (999, 0))],
)
def test_point_becomes_a_pixel_of_the_screenshot(point, pixels):
    assert to_pixels(point, 1000, 800) == pixels


def test_system_message_says_what_a_point_is_only_where_answers_carry_one():
    plain, pointing = build_system_text(AgentConfig()), build_system_text(AGENT)
    added = "point: the element's centre [x, y], each 0 to 1000 of the screenshot\n"
    assert added in pointing and "point" not in plain
    assert pointing.replace(added, "").replace("target, point, arguments", "target, arguments") == plain


def test_every_action_with_a_target_carries_a_point_and_no_other():
    own = AgentConfig(
        points=True,
        actions=(
            ActionType("TAP", "tap it", {"times": ("once", "twice")}),
            ActionType("BACK", "go back", takes_target=False),
            ActionType("DONE", "end", is_final=True),
        ),
    )
    assert [list(a.arguments) for a in own.actions] == [["point", "times"], [], []]
    assert [a.name for a in AGENT.actions if "point" in a.arguments] == ["CLICK", "SCROLL", "ZOOM", "TEXT", "SEGMENT"]
    assert [list(give_point(a).arguments) for a in own.actions] == [["point", "times"], [], []], "given once"


def test_agent_with_points_survives_its_file_and_one_of_before_has_none():
    assert agent_from_json(json.loads(json.dumps(agent_to_json(AGENT)))) == AGENT
    before = agent_to_json(AgentConfig())
    del before["points"]
    assert agent_from_json(json.loads(json.dumps(before))) == AgentConfig()
    assert AgentConfig().actions == DEFAULT_ACTIONS


def test_answers_are_taught_the_centre_of_their_box_behind_the_target(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(1))
    click, text, complete = load(path)[0].golds
    assert format_answer(click, AGENT).startswith(
        '{"action":"CLICK","target":"Search","point":[156,156],"short_term":'
    )
    assert format_answer(text, AGENT).startswith(
        '{"action":"TEXT","target":"Patient Name","point":[156,156],"text":"DOE001","short_term":'
    )
    assert format_answer(complete, AGENT).startswith('{"action":"COMPLETE","target":"","short_term":')
    plain = load(path, AgentConfig())[0].golds
    assert all("point" not in format_answer(gold, AgentConfig()) for gold in plain)


def test_without_a_screen_the_box_is_one_of_the_screenshot(tmp_path):
    path = write(tmp_path, build_tasks(1), Grounding={"bbox": [10, 20, 90, 40]})  # the screenshot has 320x192
    step = load(path)[0].steps[0]
    assert step.gold.action.arguments == {"point": CENTRE} and step.grounding.screen_wh == (320, 192)
    assert load(path, AgentConfig())[0].steps[0].grounding.screen_wh is None


def test_point_of_the_answer_itself_is_kept(tmp_path):
    own = {"action": "CLICK", "target": "Search", "point": [40, 200]}
    path = write(tmp_path, build_tasks(1), Output=own)
    assert load(path)[0].golds[0].action.arguments == {"point": [40, 200]}
    assert load(path, AgentConfig())[0].golds[0].action.arguments == {}
    path = write(tmp_path, build_tasks(1), Output=own, Grounding={})
    assert load(path)[0].golds[0].action.arguments == {"point": [40, 200]}


@pytest.mark.parametrize(
    ("grounding", "message"),
    [
        ({"bbox": [10, 20, 400, 40], "screen": [320, 192]}, "bbox [10, 20, 400, 40] outside its screen of 320x192"),
        ({"bbox": [10, 20, 400, 40]}, "outside its screen of 320x192; expected it inside: the point of the answer is"),
        ({"bbox": [0.1, 0.2, 0.3, 0.4], "screen": [320, 192]}, "shares from 0 to 1; expected pixels"),
        ({"bbox": [10, 20, 90, 40], "screen": [320, 320]}, "screen 320x320 of another shape than the screenshot"),
        ({"bbox": [60, 20, 90, 40], "screen": [320, 192]}, "point [40, 200] of Output outside it; expected the"),
    ],
)  # fmt: skip
def test_box_that_cannot_give_the_point_is_told_with_its_row_where_points_are_taught(
    tmp_path, capsys, grounding, message
):
    own = {"action": "CLICK", "target": "Search", "point": [40, 200]}
    path = write(tmp_path, build_tasks(2), Grounding=grounding, **{"Output": own} if "[40" in message else {})
    with pytest.raises(TrajectoryError) as refused:
        load(path)
    (problem,) = refused.value.problems
    assert message in problem.message and (problem.row, problem.column, problem.task_id) == (2, "Grounding", "t1")
    assert len(load(path, AgentConfig())) == 2
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("points: true\n")
    with pytest.raises(SystemExit):
        check.main([str(path), "--recipe", str(recipe)])
    assert "1 problem in 1 of 2 tasks" in " ".join(capsys.readouterr().out.split())


def test_box_of_an_action_without_a_point_is_not_asked_to_be_right(tmp_path):
    rows = build_tasks(1)
    rows[2]["Grounding"] = json.dumps({"bbox": [10, 20, 900, 40], "screen": [320, 320]})  # of COMPLETE
    assert load(write_trajectories(tmp_path, rows))[0].golds[2].action.arguments == {}


def test_rows_without_a_box_are_trained_on_without_a_point_and_counted(tmp_path, capsys):
    rows = build_tasks(1, n_steps=5)
    path = write(tmp_path, rows, Grounding={})
    assert [g.action.arguments.get("point") for g in load(path)[0].golds] == [None, CENTRE, CENTRE, CENTRE, None]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("points: true\n")
    check.main([str(path), "--recipe", str(recipe), "--json", str(tmp_path / "report.json")])
    told = " ".join(capsys.readouterr().out.split())
    assert "points: no box in Grounding for 1 of 4 answers that take a point (row 2): they are trained on" in told
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["points"] == {"n_steps": 4, "n_without": 1, "rows_without": [2]}
    check.main([str(path), "--json", str(tmp_path / "report.json")])
    assert "points" not in json.loads((tmp_path / "report.json").read_text())


def test_training_on_points_is_refused_where_no_row_has_a_box(tmp_path):
    rows = [{**row, "Grounding": ""} for row in build_tasks(2)]
    data = DataSettings(str(write_trajectories(tmp_path, rows)))
    with pytest.raises(TrajectoryError, match=r"tasks.csv: Grounding: found no bbox for any action that has a target"):
        load_task_split(data, AGENT, seed=0, show_progress=False)
    assert load_task_split(data, AgentConfig(), seed=0, show_progress=False).train


@pytest.mark.parametrize(
    ("written", "point", "left_out"),
    [
        ('"point":[200,375]', [200, 375], ()),
        ('"point":[200.0,375.5]', [200.0, 375.5], ()),
        ('"arguments":{"point":[0,1000]}', [0, 1000], ()),
        ('"point":null', None, ()),
        ('"text":"x"', None, ()),
        ('"point":[200,1001]', None, ("point",)),
        ('"point":[-1,375]', None, ("point",)),
        ('"point":["200","375"]', None, ("point",)),
        ('"point":"200,375"', None, ("point",)),
        ('"point":[200]', None, ("point",)),
        ('"point":[200,375,1]', None, ("point",)),
        ('"point":{"x":200,"y":375}', None, ("point",)),
        ('"point":[NaN,375]', None, ("point",)),
    ],
)
def test_action_and_target_count_whatever_the_point_is(written, point, left_out):
    read = parse_answer(f'{{"action":"CLICK","target":"OK",{written},"short_term":{{"a":1}},"long_term":{{}}}}', AGENT)
    assert read.status == "ok" and read.left_out == left_out and bool(read.problem) is bool(left_out)
    expected = {"action": "CLICK", "target": "OK", **({} if point is None else {"point": point})}
    assert format_action(read.answer.action) == expected and read.answer.short_term == {"a": 1}


def test_point_of_an_action_that_has_none_is_left_out_and_a_point_alone_is_no_action():
    read = parse_answer('{"action":"COMPLETE","target":"","point":[200,375]}', AGENT)
    assert read.answer == Answer(parse_answer('{"action":"COMPLETE"}', AGENT).answer.action)
    assert parse_answer('{"point":[200,375]}', AGENT).status == "no_action"


@pytest.mark.parametrize("writer", ["model", "rule"])
def test_memory_carries_no_point(writer):
    answer = parse_answer('{"action":"CLICK","target":"OK","point":[123,457],"short_term":{"a":1}}', AGENT).answer
    memory = update(EMPTY_MEMORY, answer, writer, 1200)
    assert "123" not in str(memory) and "point" not in str(memory)


def test_point_by_hand_is_refused_with_the_key_and_a_saved_recipe_is_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: base\ntrain_csv: a.csv\noutput_dir: out\nlearning_rate: 1.0e-4\n"
        "actions: [{name: TAP, description: tap it, arguments: {point: []}}]\n"
    )
    with pytest.raises(RecipeError, match="found the argument point of TAP; expected points: true, which gives it to"):
        parse_recipe([str(path)])
    recipe = parse_recipe([str(path), "--points", "true"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    assert parse_recipe([str(saved)]).agent == recipe.agent == replace(recipe.agent, points=True)


@pytest.mark.slow
def test_replayed_points_are_all_in_their_boxes(tmp_path, capsys):
    path, agent = write_trajectories(tmp_path, build_tasks(3, n_steps=5)), tmp_path / "agent.yaml"
    agent.write_text("points: true\n")
    out = tmp_path / "out"
    common = ["--policy", "replay", "--test_csv", str(path), "--agent_config", str(agent)]
    rollout.main([*common, "--output_dir", str(out)])
    assert "point_in_box v1 12 100.0" in " ".join(capsys.readouterr().out.split())
    rules = {rule["name"]: rule for rule in json.loads((out / "metrics.json").read_text())["variants"]}
    for name in ("point_in_box", "point_0.14", "point_0.04"):
        assert (rules[name]["n"], rules[name]["n_right"]) == (12, 12)
    rollout.main([*common, "--self_check"])
    assert capsys.readouterr().out.count("ok ") == 9


@pytest.mark.slow
def test_model_is_trained_on_points_and_rolled_out_with_them(tiny_checkpoints, tmp_path, caplog):
    from training_runs import write_recipe

    from eval.predictor import load_model_for_inference

    recipe, out = write_recipe(tmp_path, tiny_checkpoints["qwen3_vl"]), tmp_path / "out"
    rows = build_tasks(5)
    rows[1]["Grounding"] = ""
    write_trajectories(tmp_path, rows)
    caplog.set_level(logging.INFO, "sft")
    run.main([str(recipe), "--points", "true", "--max_steps", "2", "--output_dir", str(out)])
    assert "points: no box in Grounding for 1 of 10 answers that take a point (row 3)" in caplog.text
    assert '"point":[156,156]' in next(r.getMessage() for r in caplog.records if "first supervised" in r.getMessage())
    predictor = load_model_for_inference(out, is_constrained=True)
    assert predictor.agent.points and predictor.agent.max_pixels < TINY_AGENT.max_pixels
    path = tmp_path / "tasks.csv"
    rollout.main(
        ["--model_path", str(out), "--test_csv", str(path), "--allow_overlap", "--output_dir", str(out / "r")]
    )
    metrics = json.loads((out / "r/metrics.json").read_text())
    assert {rule["name"]: rule["n"] for rule in metrics["variants"]}["point_in_box"] == 9
