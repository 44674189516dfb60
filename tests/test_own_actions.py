"""A vocabulary of one's own, from the data to the score; and actions that take no target."""

import json
from dataclasses import replace

import pytest
from conversion_samples import STEPS, build_careflow_row, build_pipeline_records, write_pipeline_task
from trajectory_samples import build_task, write_trajectories

from eval import rollout, score
from eval.policies.schema import build_answer_schema
from eval.scoring.matching import MATCHERS
from sft.actions import DEFAULT_ACTIONS, Action, ActionType, format_action, parse_action
from sft.check import __main__ as check
from sft.convert import __main__ as convert
from sft.data.load import TrajectoryError, load_trajectories
from sft.memory import Answer
from sft.prompts import AgentConfig, agent_from_json, agent_to_json, build_system_text, format_answer, parse_answer
from sft.recipe.recipe import RecipeError, load_agent_settings
from sft.split import __main__ as split

BACK = ActionType("BACK", "go back", takes_target=False)
SWIPE = ActionType("SWIPE", "swipe over the screen", {"direction": ("Up", "Down")}, takes_target=False)
AGENT = AgentConfig(actions=(*DEFAULT_ACTIONS, BACK, SWIPE))

RECIPE = """\
min_pixels: 16384
max_pixels: 65536
memory_writer: rule
actions:
  - {name: LONG_PRESS, description: press and hold the element}
  - {name: TOGGLE, description: switch it, arguments: {state: [On, Off]}}
  - {name: BACK, description: go back, takes_target: false}
  - {name: DONE, description: the goal is reached, is_final: true}
"""
OWN_STEPS = (
    {"action": "LONG_PRESS", "target": "Tile"},
    {"action": "TOGGLE", "target": "Night light", "state": "on"},
    {"action": "BACK", "target": ""},
    {"action": "DONE"},
)


def _write_own(folder, n_tasks=6):
    rows = [
        {**row, "Output": json.dumps(output)}
        for i in range(n_tasks)
        for row, output in zip(build_task(f"t{i}", f"Turn light {i} on", 4, 2, 0), OWN_STEPS)
    ]
    (folder / "recipe.yaml").write_text(RECIPE)
    return write_trajectories(folder, rows), folder / "recipe.yaml"


def test_action_without_target_says_so_in_the_system_message_and_others_are_unchanged():
    lines = build_system_text(AGENT).splitlines()
    assert "BACK: go back; no target" in lines
    assert "SWIPE: swipe over the screen; no target, direction Up/Down" in lines
    default = build_system_text(AgentConfig()).splitlines()
    assert [line for line in lines if not line.startswith(("BACK", "SWIPE"))] == default


def test_action_without_target_is_read_and_written_with_an_empty_one():
    for fields in ({"action": "back"}, {"action": "BACK", "target": ""}, {"action": "BACK", "target": None}):
        assert parse_action(fields, AGENT.actions) == Action("BACK", "")
    assert format_action(Action("BACK", "")) == {"action": "BACK", "target": ""}
    assert format_answer(Answer(Action("BACK", "")), replace(AGENT, memory_writer="rule")) == (
        '{"action":"BACK","target":""}'
    )


def test_target_of_an_action_that_takes_none_is_refused_in_data_and_left_out_of_an_answer():
    fields = {"action": "BACK", "target": "Menu"}
    with pytest.raises(ValueError, match="found target 'Menu' for BACK, which takes none; expected none"):
        parse_action(fields, AGENT.actions)
    parsed = parse_answer(json.dumps(fields), AGENT)
    assert (parsed.status, parsed.answer.action, parsed.left_out) == ("ok", Action("BACK", ""), ("target",))


def test_missing_target_names_the_key_that_would_allow_it():
    with pytest.raises(ValueError, match="found no target for CLICK; expected .* or takes_target: false"):
        parse_action({"action": "CLICK", "target": ""})


def test_schema_of_an_action_without_target_allows_the_empty_one_alone():
    schemas = {s["properties"]["action"]["const"]: s for s in build_answer_schema(AGENT)["anyOf"]}
    assert schemas["BACK"]["properties"]["target"] == {"const": ""}
    assert schemas["CLICK"]["properties"]["target"] == {"type": "string"}


def test_action_without_target_is_right_by_its_kind_and_arguments():
    is_right = MATCHERS["action_target"].is_right
    gold = Action("SWIPE", "", {"direction": "Up"})
    assert is_right(gold, gold)
    assert not is_right(gold, Action("SWIPE", "", {"direction": "Down"}))
    assert not is_right(gold, Action("BACK", ""))


def test_saved_agent_of_a_vocabulary_without_the_key_holds_what_it_held_before():
    saved = agent_to_json(AgentConfig())
    assert saved["actions"][0] == {
        "name": "CLICK", "description": "press the element", "arguments": {}, "is_final": False
    }  # fmt: skip
    assert agent_from_json(json.loads(json.dumps(saved))) == AgentConfig()
    assert agent_from_json(json.loads(json.dumps(agent_to_json(AGENT)))) == AGENT


def test_allowed_values_are_found_in_any_letter_case_and_written_as_the_vocabulary_has_them():
    action = parse_action({"action": "SWIPE", "direction": " up "}, AGENT.actions)
    assert action == Action("SWIPE", "", {"direction": "Up"})


@pytest.mark.parametrize("key", ["take_target: false", "takes_target: sometimes", "final: true"])
def test_key_of_an_action_that_is_none_is_refused(tmp_path, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"actions:\n  - {{name: BACK, description: go back, {key}}}\n")
    with pytest.raises(RecipeError, match=f"actions: found .* takes_target}} .*{key.partition(':')[0]}"):
        load_agent_settings(path)


def test_split_needs_no_vocabulary(tmp_path):
    path, _ = _write_own(tmp_path)
    split.main([str(path), "--parts", "train=0.5,test=0.5"])
    manifest = json.loads((tmp_path / "split.json").read_text())
    assert {name: part["n_steps"] for name, part in manifest["parts"].items()} == {"train": 12, "test": 12}


@pytest.mark.parametrize("output", ['{"action": 3}', '{"target": "x"}', "{"])
def test_split_still_refuses_an_output_without_an_action(tmp_path, output):
    rows = [{**row, "Output": output} for row in build_task("t", "goal", 1)]
    with pytest.raises(TrajectoryError, match="row 2: Output: found"):
        split.main([str(write_trajectories(tmp_path, rows))])


def test_unknown_action_names_the_recipe_as_the_way_out(tmp_path):
    path, _ = _write_own(tmp_path)
    with pytest.raises(TrajectoryError, match="found action 'LONG_PRESS'.*or a recipe that defines it under actions:"):
        load_trajectories(path, show_progress=False)


def test_own_vocabulary_is_checked_rolled_out_checked_by_itself_and_scored(tmp_path, capsys):
    path, recipe = _write_own(tmp_path)
    check.main([str(path), "--recipe", str(recipe)])
    out = tmp_path / "out"
    arguments = ["--test_csv", str(path), "--agent_config", str(recipe)]
    rollout.main([*arguments, "--policy", "replay", "--output_dir", str(out)])
    rollout.main([*arguments, "--self_check"])
    assert "FAILED" not in capsys.readouterr().out
    score.main([str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["matchers"]["action_target"]["ta"]["value"] == 1
    assert set(metrics["per_action"]) == {"LONG_PRESS", "TOGGLE", "BACK", "DONE"}


@pytest.mark.parametrize("kind", ["careflow", "pipeline", "records"])
def test_conversion_takes_its_vocabulary_from_a_recipe(tmp_path, kind):
    renamed = {"CLICK": "LONG_PRESS", "TEXT": "TOGGLE", "ZOOM": "BACK", "SEGMENT": "LONG_PRESS", "COMPLETE": "DONE"}
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def rename(fields):
        fields["action"] = renamed[fields["action"]]
        fields |= {"state": "off"} if fields["action"] == "TOGGLE" else {}
        fields |= {"target": ""} if fields["action"] == "BACK" else {}

    if kind == "careflow":
        import pyarrow
        from pyarrow import parquet

        row = build_careflow_row(1)
        data = json.loads(row["json_data"])
        for step in data["trajectory"]:
            rename(step)
        source = tmp_path / "table.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{**row, "json_data": json.dumps(data)}]), source)
    elif kind == "pipeline":
        records = build_pipeline_records(1)
        for record in records:
            (fields,) = record.values()
            rename(fields["Grounding"]["ground_truth"])
        source = write_pipeline_task(tmp_path / "in", 1, records).parent
    else:
        csv_path, _ = _write_own(tmp_path, 1)
        (task,) = load_trajectories(csv_path, actions=load_agent_settings(tmp_path / "recipe.yaml").actions)
        source = tmp_path / "rows.jsonl"
        lines = [
            {"Task_id": "r", "Image_id": s.image_id, "Instruction": "go", "Output": format_action(s.gold.action)}
            for s in task.steps
        ]
        source.write_text("\n".join(map(json.dumps, lines)))
    convert.main([kind, str(source), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")])
    actions = load_agent_settings(tmp_path / "recipe.yaml").actions
    (task,) = load_trajectories(tmp_path / "out/data.csv", actions=actions, show_progress=False)
    kinds = [step.gold.action.kind for step in task.steps]
    expected = [renamed[action] for action, _ in STEPS] if kind != "records" else [o["action"] for o in OWN_STEPS]
    assert kinds == expected
    toggle = next(step.gold.action for step in task.steps if step.gold.action.kind == "TOGGLE")
    assert toggle.arguments["state"] == ("On" if kind == "records" else "Off")
