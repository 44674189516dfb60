"""Data of other agents to a CSV: chat data, AgentNet, ScreenAgent; actions by a table, places by the units given."""

import json
import os
import random
import time

import pytest
from conftest import ROOT
from conversion_samples import (
    CHAT_ANSWERS,
    as_data_uri,
    build_agentnet_task,
    build_call,
    build_careflow_row,
    build_chat_row,
    draw_screen,
    encode_screen,
    write_agentnet,
    write_chat,
    write_screenagent_session,
)
from test_convert import _damage
from trajectory_samples import format_csv

from sft.actions import ActionType
from sft.convert import __main__ as convert
from sft.convert.action_map import DEFAULT_MAPS, DESKTOP_ACTIONS, load_action_map
from sft.convert.foreign_actions import read_calls, read_turn
from sft.data.load import load_trajectories
from sft.errors import UserError
from sft.recipe.recipe import load_agent_settings


def _convert(kind, source, out, *flags):
    convert.main([kind, str(source), str(out), *map(str, flags)])
    report = json.loads((out / "conversion_report.json").read_text())
    actions = load_agent_settings(out / "actions.yaml").actions
    return load_trajectories(out / "data.csv", actions=actions, show_progress=False), report


def _actions(task):
    return [(s.gold.action.kind, s.gold.action.target, dict(s.gold.action.arguments)) for s in task.steps]


CHAT = [
    ("CLICK", "Press what is named left_click.", {"point": [250, 500]}),
    ("TEXT", "Press what is named type.", {"text": "liver"}),
    ("KEY", "", {"keys": "ctrl+s"}),
    ("COMPLETE", "", {}),
]


def test_agentnet_trajectory_becomes_steps_with_points_and_the_sentence_as_target(tmp_path):
    source = write_agentnet(tmp_path / "in", [build_agentnet_task(1)])
    (task,), report = _convert("agentnet", source, tmp_path / "out")
    assert (task.task_id, task.instruction) == ("agentnet-1", "Edit picture 1")
    assert _actions(task) == [
        ("CLICK", "Click on the GIMP icon in the dock", {"point": [250, 500]}),
        ("DOUBLE_CLICK", "Open the file by a double click", {"point": [100, 200]}),
        ("KEY", "", {"keys": "ctrl+c"}),
        ("TEXT", "Type the name into the search field", {"text": "liver"}),
        ("SCROLL", "Scroll down the list", {"direction": "down", "point": [100, 200]}),  # where the pointer was left
        ("MOVE", "Move onto the handle", {"point": [300, 300]}),
        ("DRAG", "Drag the handle to the right", {"point": [300, 300], "to_x": 600, "to_y": 300}),
        ("COMPLETE", "", {}),
    ]
    assert [s.image_path.read_bytes() for s in task.steps] == [encode_screen(500 + i) for i in range(8)]
    assert task.steps[0].grounding.bbox is None
    assert (report["n_dropped_tasks"], report["remarks"]) == (0, {})
    assert report["action_map"]["hotkey"] == {"action": "KEY", "keys": "$keys|$key|$1"}


@pytest.mark.parametrize("value", [{}, {"code": "pyautogui.fly("}, {"code": None}])
def test_agentnet_step_that_its_judge_calls_wrong_is_left_out_and_the_number_stays_a_gap(tmp_path, value):
    row = build_agentnet_task(1)
    row["traj"][1]["value"] |= {"last_step_correct": False, **value}
    (task,), report = _convert("agentnet", write_agentnet(tmp_path / "in", [row]), tmp_path / "out")
    assert len(task.steps) == 7
    assert "DOUBLE_CLICK" not in [kind for kind, *_ in _actions(task)]
    assert report["remarks"] == {"agentnet-1": ["step 2 left out: last_step_correct is false"]}
    numbers = [line.split(",")[1] for line in (tmp_path / "out/data.csv").read_text().splitlines()[1:]]
    assert numbers == ["1", "3", "4", "5", "6", "7", "8"]


def test_agentnet_steps_are_read_in_the_order_of_their_index_without_redundant_ones(tmp_path):
    row = build_agentnet_task(1)
    row["traj"][1]["value"]["last_step_redundant"] = True
    row["traj"].reverse()
    (task,), report = _convert("agentnet", write_agentnet(tmp_path / "in", [row]), tmp_path / "out")
    kinds = [kind for kind, *_ in _actions(task)]
    assert kinds == ["CLICK", "KEY", "TEXT", "SCROLL", "MOVE", "DRAG", "COMPLETE"]
    assert report["remarks"]["agentnet-1"] == [
        "the steps were not in the order of their index, which counts",
        "step 2 left out: last_step_redundant is true",
    ]


def test_agentnet_calls_that_do_nothing_are_left_out(tmp_path):
    row = build_agentnet_task(1)
    codes = ["pyautogui.scroll(0)", "pyautogui.write(message='')", "pyautogui.typewrite('liver')", "DONE"]
    row["traj"] = [{**step, "value": {"code": code}} for step, code in zip(row["traj"], codes)]
    (task,), report = _convert("agentnet", write_agentnet(tmp_path / "in", [row]), tmp_path / "out")
    assert _actions(task) == [("TEXT", "the focused field", {"text": "liver"}), ("COMPLETE", "", {})]
    assert report["remarks"]["agentnet-1"] == [
        "left out scroll before step 1, which does nothing",
        "left out write before step 1, which does nothing",
        "step 1: the source says no place; the target is 'the focused field'",
    ]


def test_agentnet_task_that_was_not_completed_does_not_end_with_complete(tmp_path):
    source = write_agentnet(tmp_path / "in", [build_agentnet_task(1, task_completed=False)])
    (task,), report = _convert("agentnet", source, tmp_path / "out")
    assert _actions(task)[-1][0] == "DRAG"
    assert "the goal was not reached" in report["remarks"]["agentnet-1"][0]


def test_target_without_a_sentence_is_the_place(tmp_path):
    row = build_agentnet_task(1)
    for step in row["traj"]:
        step["value"] = {"code": step["value"]["code"]}  # as AgentNet's own tools take it, before sentences are made
    (task,), _ = _convert("agentnet", write_agentnet(tmp_path / "in", [row]), tmp_path / "out")
    assert [target for _, target, _ in _actions(task)][:5] == [
        "[250, 500]",
        "[100, 200]",
        "",
        "[100, 200]",
        "[100, 200]",
    ]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("pyautogui.keyDown('shift')", "step 1: found the action 'keyDown', which the action map does not have"),
        ("computer.terminate(status='failure')", "found the action 'terminate_failure'"),
        ("pyautogui.click(x=1.5, y=0.5)", "step 1: found the point [1.5, 0.5]; expected values from 0 to 1, since "
         "--coordinates is fraction"),
        ("pyautogui.click(x=-0.1, y=0.5)", "found the point [-0.1, 0.5]"),
        ("pyautogui.click(x=float('nan'), y=0)", "expected a call with literal arguments"),
        ("__import__('os').system('touch /tmp/x')", "expected a call with literal arguments"),
        ("import os; os.remove('x')", "found the action 'remove'"),
        ("x = 1", "found 'x = 1'; expected a call"),
        ("click on it", "found no action in 'click on it'"),
        ("(" * 5_000, "found no action"),
        ("-" * 19_000 + "1", "found no action"),
        ("pyautogui.write()", "found no message in write(...)"),
        ("pyautogui.scroll()", "found no direction in scroll(...)"),
        ("", "found no action"),
    ],
)  # fmt: skip
def test_agentnet_action_that_cannot_be_mapped_drops_its_task_with_the_reason(tmp_path, code, reason):
    bad = build_agentnet_task(2)
    bad["traj"][0]["value"]["code"] = code
    source = write_agentnet(tmp_path / "in", [build_agentnet_task(1), bad])
    tasks, report = _convert("agentnet", source, tmp_path / "out")
    assert [t.task_id for t in tasks] == ["agentnet-1"]
    (dropped,) = report["dropped"]
    assert (dropped["task_id"], dropped["n_steps"]) == ("agentnet-2", 8)
    assert reason in dropped["reason"]


def test_line_that_is_no_json_is_dropped_and_the_others_are_read(tmp_path):
    source = write_agentnet(tmp_path / "in", [build_agentnet_task(1)])
    deep = '{"task_id": "deep", "traj": ' + "[" * 50_000 + "]" * 50_000 + "}"
    source.write_text("\n".join([source.read_text().strip(), '{"task_id"', deep, '{"task_id": "t", "traj": 5}']))
    tasks, report = _convert("agentnet", source, tmp_path / "out")
    assert len(tasks) == 1
    reasons = [task["reason"] for task in report["dropped"]]
    assert "broken JSON" in reasons[0]
    assert "fewer" in reasons[1]
    assert "found no steps in traj" in reasons[2]


def test_screenagent_session_becomes_steps_with_boxes_on_its_video(tmp_path):
    write_screenagent_session(tmp_path / "in/train", "session")
    (task,), report = _convert("screenagent", tmp_path / "in", tmp_path / "out")
    assert (task.task_id, task.instruction) == ("session", "Find session")
    assert _actions(task) == [
        ("CLICK", "Open the study", {"point": [530, 173]}),
        ("DOUBLE_CLICK", "Search for it", {"point": [98, 260]}),
        ("TEXT", "Search for it", {"text": "liver"}),
        ("KEY", "", {"keys": "Return"}),
        ("SCROLL", "Search for it", {"direction": "down", "point": [98, 260]}),
        ("COMPLETE", "", {}),
    ]
    assert task.steps[0].grounding.bbox == (530, 121, 976, 145)
    assert {s.grounding.screen_wh for s in task.steps} == {(1024, 768)}
    assert len({s.image_path for s in task.steps}) == 3  # actions of one file are steps on its screenshot
    assert not report["remarks"]


def test_screenagent_session_whose_plan_is_not_done_does_not_end_with_complete(tmp_path):
    session = write_screenagent_session(tmp_path / "in", "session")
    files = sorted(p for p in session.glob("*.json") if "_neg_" not in p.name)
    files[-1].unlink()
    (task,), report = _convert("screenagent", tmp_path / "in", tmp_path / "out")
    assert _actions(task)[-1][0] == "SCROLL"
    assert report["remarks"] == {"session": ["the session does not end with its last success"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"video_width": 300, "video_height": 200},
            "the point [543, 133]; expected values from 0 to the screen's 300x",
        ),
        ({"saved_image_name": "../../secret.png"}, "found no screenshot '../../secret.png'; give its folder"),
        ({"saved_image_name": "/etc/passwd"}, "found no screenshot '/etc/passwd'"),
        ({"saved_image_name": None}, "found no screenshot"),
        ({"actions": "click"}, "found no list of actions"),
        ({"actions": [{"action_type": "MouseAction", "mouse_action_type": "hold"}]}, "the action 'hold', which"),
        ({"actions": [7]}, "expected an action of ScreenAgent"),
        ({"actions": []}, "found no mouse or keyboard action"),
    ],
)
def test_screenagent_session_that_cannot_be_used_is_dropped_with_the_reason(tmp_path, changes, reason):
    (tmp_path / "secret.png").write_bytes(encode_screen(1))
    write_screenagent_session(tmp_path / "in", "good")
    write_screenagent_session(tmp_path / "in", "zbad", **changes)
    tasks, report = _convert("screenagent", tmp_path / "in", tmp_path / "out")
    assert [t.task_id for t in tasks] == ["good"]
    assert reason in report["dropped"][0]["reason"]


def test_pipes_and_large_files_among_sessions_are_not_read(tmp_path, monkeypatch):
    session = write_screenagent_session(tmp_path / "in", "good")
    os.mkfifo(session / "0.json")
    (tmp_path / "in/large").mkdir()
    (tmp_path / "in/large/1.json").write_text("[" * 3_000)
    monkeypatch.setattr("sft.convert.screenagent.MAX_FILE_BYTES", 2_000)
    tasks, report = _convert("screenagent", tmp_path / "in", tmp_path / "out")
    assert [t.task_id for t in tasks] == ["good"]
    assert "found more than 2000 bytes" in report["dropped"][0]["reason"]


def _as_parts(row):
    """Return a row with content in parts, as TRL takes it."""
    messages = []
    for message in row["messages"]:
        text = message["content"].removeprefix("<image>")
        parts = [{"type": "image"}] if message["content"].startswith("<image>") else []
        messages.append({**message, "content": [*parts, *([{"type": "text", "text": text}] if text else [])]})
    return {**row, "messages": messages}


def _as_parts_with_pictures(row):
    """As a column of `datasets` holds parts that carry their pictures: each has the keys of all."""
    images = iter(row["images"])
    for message in row["messages"]:
        text = message["content"].removeprefix("<image>")
        parts = [{"type": "text", "text": text, "image": None}]
        if text != message["content"]:
            parts.insert(0, {"type": "image", "text": None, "image": next(images)})
        message["content"] = parts
    return {**row, "images": None}


def _as_sharegpt(row):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]
    return {"id": row["id"], "conversations": turns, "images": row["images"]}


def _as_pairs(row):
    said = row["messages"][1:]
    pairs = [{"human": a["content"], "assistant": b["content"]} for a, b in zip(said[::2], said[1::2])]
    return {"id": row["id"], "system": "You are a helpful assistant.", "conversation": pairs, "images": row["images"]}


def _as_prompt_and_completion(row):
    return {
        **{k: row[k] for k in ("id", "images")},
        "prompt": row["messages"][:-1],
        "completion": row["messages"][-1:],
    }


def _as_inline(row):
    """Return a row of the OpenAI protocol, its pictures in it, its answers tool calls."""
    messages = []
    numbers = iter(range(700, 800))
    for message in row["messages"]:
        content = message["content"]
        if message["role"] == "user":
            url = as_data_uri(encode_screen(next(numbers)))
            text = content.removeprefix("<image>")
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        messages.append({"role": message["role"], "content": content})
    return {"id": row["id"], "messages": messages}


@pytest.mark.parametrize(
    "build",
    [
        lambda row: row, _as_parts, _as_parts_with_pictures, _as_sharegpt, _as_pairs, _as_prompt_and_completion,
        _as_inline,
    ],
    ids=["role/content", "parts", "parts with pictures", "sharegpt", "pairs", "prompt and completion", "inline"],
)  # fmt: skip
def test_every_form_of_chat_data_gives_the_same_steps(tmp_path, build):
    source = write_chat(tmp_path / "in", [build_chat_row(1)])
    (tmp_path / "in/rows.jsonl").write_text(json.dumps(build(json.loads(source.read_text()))))
    (task,), report = _convert(
        "messages", tmp_path / "in/rows.jsonl", tmp_path / "out", "--coordinates", "thousandths"
    )
    assert (task.task_id, task.instruction) == ("chat-1", "Open study 1")
    assert _actions(task) == CHAT
    assert [s.image_path.read_bytes() for s in task.steps] == [encode_screen(700 + i) for i in range(4)]
    assert not report["remarks"]


def _as_list(folder, rows):
    path = folder / "in/rows.json"
    path.write_text(json.dumps(rows))
    return path


def _as_parquet(folder, rows):
    import pyarrow
    from pyarrow import parquet

    rows = [{**row, "images": [{"bytes": (folder / "in" / i).read_bytes(), "path": None} for i in row["images"]]}
            for row in rows]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def _as_saved(folder, rows):
    """Save rows by `datasets`, pictures given to it as PIL's."""
    import datasets

    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": text})
    features = datasets.Features({"id": text, "messages": messages, "images": datasets.List(datasets.Image())})
    rows = [{**row, "images": [draw_screen(700 + i) for i in range(4)]} for row in rows]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("write", [_as_list, _as_parquet, _as_saved])
def test_every_container_of_chat_data_gives_the_same_steps(tmp_path, write):
    write_chat(tmp_path / "in", [build_chat_row(1)])
    source = write(tmp_path, [build_chat_row(1)])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert _actions(task) == CHAT
    assert task.steps[0].grounding.screen_wh == (320, 192)


def test_rows_of_one_turn_are_tasks_of_one_step_or_by_a_column_steps_of_one(tmp_path):
    rows = [
        build_chat_row(n, (answer,), id=None, episode="e1", instruction="Open the study")
        for n, answer in enumerate(CHAT_ANSWERS)
    ]
    source = write_chat(tmp_path / "in", rows)
    flags = ("--coordinates", "thousandths")
    tasks, _ = _convert("messages", source, tmp_path / "rows", *flags)
    assert [(t.task_id, len(t.steps)) for t in tasks] == [(f"row{n}", 1) for n in (1, 2, 3, 4)]
    (task,), _ = _convert("messages", source, tmp_path / "tasks", *flags, "--task_column", "episode")
    assert (task.task_id, task.instruction) == ("e1", "Open the study")
    assert _actions(task) == CHAT
    shuffled = [{**row, "episode": f"e{n % 2}"} for n, row in enumerate(rows)]
    (tmp_path / "in/shuffled.jsonl").write_text("\n".join(map(json.dumps, shuffled)))
    with pytest.raises(UserError, match="row 3: found episode 'e0' again, behind rows of another task; expected"):
        source_shuffled = str(tmp_path / "in/shuffled.jsonl")
        convert.main(["messages", source_shuffled, str(tmp_path / "out"), *flags, "--task_column", "episode"])
    with pytest.raises(UserError, match="expected session among them"):
        convert.main(["messages", str(source), str(tmp_path / "out"), *flags, "--task_column", "session"])


OURS = (
    '{"action":"CLICK","target":"Study list","point":[12,34],"short_term":{"n":1},"long_term":{}}',
    '```json\n{"action":"COMPLETE","target":"","short_term":{"n":2},"long_term":{}}\n```',
)


def test_answers_of_ours_are_taken_with_their_memory_and_need_no_units(tmp_path):
    source = write_chat(tmp_path / "in", [build_chat_row(1, OURS)])
    (task,), _ = _convert("messages", source, tmp_path / "out")
    assert _actions(task) == [("CLICK", "Study list", {"point": [12, 34]}), ("COMPLETE", "", {})]
    assert [step.gold.short_term for step in task.steps] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("pyautogui.click(x=0.5, y=0.25)", ("CLICK", "[500, 250]", {"point": [500, 250]})),
        ("```python\nimport pyautogui\npyautogui.click(0.5, 0.25, button='right')\n```",
         ("RIGHT_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("## Action:\nOpen the list\n## Code:\n```python\npyautogui.click(0.5, 0.25, clicks=2)\n```",
         ("DOUBLE_CLICK", "Open the list", {"point": [500, 250]})),
        ("Thought: I see it.\nAction: click(start_box='(0.5,0.25)')", ("CLICK", "[500, 250]", {"point": [500, 250]})),
        ("Action: click(start_box='<|box_start|>(0.5,0.25)<|box_end|>')",
         ("CLICK", "[500, 250]", {"point": [500, 250]})),
        ("Action: CLICK(0.5, 0.25)", ("CLICK", "[500, 250]", {"point": [500, 250]})),
        ("Action: CLICK('Study list')", ("CLICK", "Study list", {})),
        ("Action: CLICK(target='Study list', point=[0.5, 0.25])", ("CLICK", "Study list", {"point": [500, 250]})),
        ("left_double(start_box=[0.4, 0.2, 0.6, 0.3])", ("DOUBLE_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("drag(start_box='(0.1,0.2)', end_box='(0.3,0.4)')",
         ("DRAG", "[100, 200]", {"point": [100, 200], "to_x": 300, "to_y": 400})),
        ("scroll(start_box='(0.1,0.2)', direction='Down')",
         ("SCROLL", "[100, 200]", {"direction": "down", "point": [100, 200]})),
        ("pyautogui.press('down', presses=3)", ("KEY", "", {"keys": "down down down"})),
        ("pyautogui.press(['tab', 'enter'])", ("KEY", "", {"keys": "tab enter"})),
        ("hotkey(key='ctrl c')", ("KEY", "", {"keys": "ctrl+c"})),
        ("pyautogui.hotkey('ctrl', 'c')", ("KEY", "", {"keys": "ctrl+c"})),
        ("Action: TYPE('{\"a\": 1}', target='Search')", ("TEXT", "Search", {"text": '{"a": 1}'})),
        ("hotkey(key='ctrl shift + p')", ("KEY", "", {"keys": "ctrl+shift+p"})),
        ("hotkey('ctrl', '+')", ("KEY", "", {"keys": "ctrl++"})),
        ("pyautogui.keyDown('ctrl')\npyautogui.press('c')\npyautogui.keyUp('ctrl')", ("KEY", "", {"keys": "ctrl+c"})),
        ("pyautogui.click(0.5, 0.25, 1, 0.1, 'right')", ("RIGHT_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("pyautogui.click(0.5, 0.25, 2, 0.1)", ("DOUBLE_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("pyautogui.doubleClick(0.5, 0.25, 0.1, 'left')", ("DOUBLE_CLICK", "[500, 250]", {"point": [500, 250]})),
        (build_call(action="left_click", coordinate=[0.5, 0.25], clicks=3).partition("\n")[2],
         ("TRIPLE_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("click(x=0.5, y=0.25, button='MIDDLE')", ("MIDDLE_CLICK", "[500, 250]", {"point": [500, 250]})),
        ("WAIT", ("WAIT", "", {})),
        ("```\nDONE\n```", ("COMPLETE", "", {})),
        ("type(content='liver')", ("TEXT", "the focused field", {"text": "liver"})),
        ("Thought: Below.\nAction: scroll(direction='down')", ("SCROLL", "the screen", {"direction": "down"})),
        ("time.sleep(2)", ("WAIT", "", {})),
        ('{"action_type": "click", "x": 0.5, "y": 0.25}', ("CLICK", "[500, 250]", {"point": [500, 250]})),
        ('{"name": "click", "arguments": "{\\"target\\": \\"Save\\", \\"x\\": 0.5, \\"y\\": 0.25}"}',
         ("CLICK", "Save", {"point": [500, 250]})),
        ('[{"action_type":"MouseAction","mouse_action_type":"click","mouse_button":"left",'
         '"mouse_position":{"width":0.5,"height":0.25}}]', ("CLICK", "[500, 250]", {"point": [500, 250]})),
        (build_call(action="left_click_drag", start_coordinate=[0.1, 0.2], coordinate=[0.3, 0.4]),
         ("DRAG", "Press what is named left_click_drag.", {"point": [100, 200], "to_x": 300, "to_y": 400})),
        (build_call(action="scroll", coordinate=[0.1, 0.2], pixels=-3),
         ("SCROLL", "Press what is named scroll.", {"direction": "down", "point": [100, 200]})),
        ("<think>{\"action\": \"no\"}</think>Action: finished(content='done')", ("COMPLETE", "", {})),
    ],
)  # fmt: skip
def test_answers_of_other_agents_are_read(tmp_path, answer, expected):
    source = write_chat(tmp_path / "in", [build_chat_row(1, (answer,))])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "fraction")
    assert _actions(task) == [expected]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("pyautogui.doubleClick(0.5, 0.25, button='right')", "right_doubleClick"),
        ("pyautogui.doubleClick(0.5, 0.25, 0.1, 'right')", "right_doubleClick"),
        ("pyautogui.click(0.5, 0.25, clicks=2, button='middle')", "middle_doubleClick"),
        ("pyautogui.click(0.5, 0.25, clicks=4)", "click_4_times"),
        ("pyautogui.moveTo(0.1, 0.1)\npyautogui.dragTo(0.5, 0.25, button='right')", "right_dragTo"),
        ("pyautogui.dragTo(0.5, 0.25, 1, None, 'middle')", "middle_dragTo"),
        (build_call(action="left_click", coordinate=[0.5, 0.25], button="right"), "right_left_click"),
        (build_call(action="double_click", coordinate=[0.5, 0.25], button="middle"), "middle_double_click"),
        (build_call(action="click", coordinate=[0.5, 0.25], button=["right"]), "['right']Click"),
        ('{"action_type": "MouseAction", "mouse_action_type": "double_click", "mouse_button": "right", '
         '"mouse_position": {"width": 0.5, "height": 0.25}}', "right_double_click"),
        ("pyautogui.mouseDown(0.5, 0.25, button='right')", "mouseDown"),
        ("pyautogui.keyDown('ctrl')\npyautogui.click(0.5, 0.25)\npyautogui.keyUp('ctrl')", "keyDown"),
        ("FAIL", "terminate_failure"),
    ],
)  # fmt: skip
def test_button_that_an_action_cannot_say_is_not_lost(tmp_path, answer, name):
    source = write_chat(tmp_path / "in", [build_chat_row(1, (answer,)), build_chat_row(2)])
    convert.main(["messages", str(source), str(tmp_path / "out"), "--coordinates", "thousandths"])
    (dropped,) = json.loads((tmp_path / "out/conversion_report.json").read_text())["dropped"]
    assert f"found the action {name!r}, which the action map does not have; add a row for it" in dropped["reason"]


def test_tool_calls_are_the_action_whatever_is_said_beside_them(tmp_path):
    def act(content, **arguments):
        function = {"name": "computer_use", "arguments": json.dumps(arguments)}
        return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}

    row = build_chat_row(1, ("", "", ""))
    too_long = build_chat_row(2, ("",))
    too_long["messages"][2] = act("<tool_call>" * 100_000, action="wait")
    row["messages"][2::2] = [
        act("I will click the list. wait()", action="left_click", coordinate=[250, 500]),
        act([{"type": "text", "text": "Action: Type </tool_call>"}], action="type", text="</tool_call>"),
        act(CHAT_ANSWERS[0], action="terminate", status="success"),
    ]
    source = write_chat(tmp_path / "in", [row, too_long])
    (task,), report = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert "characters; expected at most 20000" in report["dropped"][0]["reason"]
    assert _actions(task) == [
        ("CLICK", "[250, 500]", {"point": [250, 500]}),
        ("TEXT", "Type </tool_call>", {"text": "</tool_call>"}),
        ("COMPLETE", "", {}),
    ]


UI_TARS = (
    "You are an agent; the task comes last.\n\n## Output Format\n```\nThought: ...\nAction: ...\n```\n\n"
    "## Action Space\nclick(start_box='<|box_start|>(x1,y1)<|box_end|>')\n\n## Note\n- Be brief.\n\n"
)
GOALS = {  # the first turn, the goal, and whether that is remarked on
    "UI-TARS": (UI_TARS + "## User Instruction\nOpen the study\nof DOE\n<image>", "Open the study\nof DOE", False),
    "Qwen": ("The user query: Open the study.\nTask progress (You have done the following operation on the current "
             "device): Step 1: Tap; .\n<image>", "Open the study.", False),
    "Qwen, on one line": ("The user query:  Open it (You have done the following operation on the current device): "
                          "None<image>", "Open it", False),
    "Qwen, before the picture": ("The user query: Open it\n\nCurrent Screenshot: <image>\n\nPlease analyze.",
                                 "Open it", False),
    "OpenCUA": ("<image>\n# Task Instruction:\nOpen the study\n\nPlease generate the next move.", "Open the study",
                False),
    "plain": ("<image>Open the study", "Open the study", False),
    "lines": ("<image>Open the study\nof DOE", "Open the study\nof DOE", True),
    "long": ("<image>" + "Open " * 80, ("Open " * 80).strip(), True),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "goal", "is_told"), GOALS.values(), ids=GOALS)
def test_goal_alone_is_read_from_the_prompts_of_agents(tmp_path, asked, goal, is_told):
    row = build_chat_row(1, CHAT_ANSWERS[-1:])
    row["messages"][1]["content"] = asked
    (task,), report = _convert("messages", write_chat(tmp_path / "in", [row]), tmp_path / "out")
    assert task.instruction == goal
    remarks = report["remarks"].get("chat-1", [])
    assert [remark for remark in remarks if "the goal is the whole first turn" in remark] == remarks
    assert bool(remarks) is is_told


@pytest.mark.parametrize(
    "text",
    [
        "Goal: \n" * 100_000,
        "\n" * 500_000,
        "#" * 500_000,
        "The user query:\n" * 50_000,
        "## User Instruction\n" * 50_000,
    ],
)
def test_goal_is_looked_for_in_little_time_in_whatever_text(tmp_path, text):
    row = build_chat_row(1, CHAT_ANSWERS[-1:])
    row["messages"][1]["content"] = f"<image>x{text}"
    source = write_chat(tmp_path / "in", [row, build_chat_row(2, CHAT_ANSWERS[-1:])])
    start = time.process_time()
    _convert("messages", source, tmp_path / "out")
    assert time.process_time() - start < 10


@pytest.mark.parametrize("mark", [{"loss": False}, {"train": False}, {"weight": 0}])
def test_turn_that_is_not_to_be_learned_is_left_out_and_its_number_stays_a_gap(tmp_path, mark):
    row = build_chat_row(1)
    row["messages"][2] |= mark
    row["messages"][4] |= dict.fromkeys(mark, 1)
    (task,), report = _convert(
        "messages", write_chat(tmp_path / "in", [row]), tmp_path / "out", "--coordinates", "thousandths"
    )
    assert [kind for kind, *_ in _actions(task)] == ["TEXT", "KEY", "COMPLETE"]
    assert report["remarks"] == {"chat-1": ["step 1 left out: the source marks it as not to be learned"]}
    numbers = [line.split(",")[1] for line in (tmp_path / "out/data.csv").read_text().splitlines()[1:]]
    assert numbers == ["2", "3", "4"]


@pytest.mark.parametrize(
    "answers",
    [
        ("Action: click(start_box='(250,500)')", "Action: type(content='liver')", "Action: scroll(direction='up')"),
        tuple(f'<tool_call>{{"name": "mobile_use", "arguments": {arguments}}}</tool_call>' for arguments in (
            '{"action": "click", "coordinate": [250, 500]}', '{"action": "type", "text": "liver"}',
            '{"action": "scroll", "direction": "up"}')),
        ('{"action_type": "click", "x": 250, "y": 500}', '{"action_type": "input_text", "text": "liver"}',
         '{"action_type": "scroll", "direction": "up"}'),
        ('[{"action": "click", "point": [250, 500]}, {"action": "type", "text": "liver"}]',
         '[{"action": "scroll", "direction": "up"}]'),
    ],
)  # fmt: skip
def test_typing_and_scrolling_take_place_where_the_pointer_was_left_in_every_dialect(tmp_path, answers):
    source = write_chat(tmp_path / "in", [build_chat_row(1, answers)])
    (task,), report = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert _actions(task) == [
        ("CLICK", "[250, 500]", {"point": [250, 500]}),
        ("TEXT", "[250, 500]", {"text": "liver"}),
        ("SCROLL", "[250, 500]", {"direction": "up", "point": [250, 500]}),
    ]
    assert not report["remarks"]


def test_target_that_no_place_names_is_remarked_on(tmp_path):
    source = write_chat(tmp_path / "in", [build_chat_row(1, ("type(content='liver')", "DONE"))])
    _, report = _convert("messages", source, tmp_path / "out")
    assert report["remarks"] == {"chat-1": ["step 1: the source says no place; the target is 'the focused field'"]}


def test_pictures_without_placeholders_are_those_of_the_first_turn_as_in_trl(tmp_path):
    rows = [build_chat_row(n, CHAT_ANSWERS[-1:], images=[f"shots/{n}-0.png", f"shots/{n}-1.png"]) for n in (1, 2)]
    rows[1]["messages"] += [{"role": "user", "content": "Go on"}, rows[1]["messages"][-1]]
    for row in rows:
        row["messages"][1]["content"] = "Open the study"
    (task,), report = _convert("messages", write_chat(tmp_path / "in", rows), tmp_path / "out")
    assert task.steps[0].image_path.read_bytes() == encode_screen(701)
    assert report["remarks"]["chat-1"] == [
        "1 more pictures than answers: the last one before an answer is its screenshot"
    ]
    assert "found 2 pictures without placeholders (<image>) and 2 answers" in report["dropped"][0]["reason"]


def test_words_before_the_first_picture_and_behind_the_last_action_are_left_out(tmp_path):
    row = build_chat_row(1, (*CHAT_ANSWERS[:1], "Done, the study is open."))
    row["messages"][1:1] = [{"role": "user", "content": "Hello"}, {"role": "bot", "content": "Hi, what should I do?"}]
    (task,), report = _convert(
        "messages", write_chat(tmp_path / "in", [row]), tmp_path / "out", "--coordinates", "thousandths"
    )
    assert (task.instruction, [kind for kind, *_ in _actions(task)]) == ("Open study 1", ["CLICK"])
    assert report["remarks"]["chat-1"][:2] == [
        "left out the turn 'Hi, what should I do?', which names no action",
        "left out the turn 'Done, the study is open.', which names no action",
    ]


def _as_alpaca(row):
    return {"instruction": "<image>Open study 1", "input": "", "output": row["messages"][-1]["content"]}


def _as_alpaca_with_history(row):
    said = [message["content"] for message in row["messages"][1:]]
    return {"query": said[-2], "response": said[-1], "history": [said[i : i + 2] for i in range(0, len(said) - 2, 2)]}


@pytest.mark.parametrize(("build", "n_steps"), [(_as_alpaca, 1), (_as_alpaca_with_history, 4)])
def test_columns_of_a_question_and_its_answer_are_a_conversation(tmp_path, build, n_steps):
    row = build_chat_row(1, CHAT_ANSWERS[-n_steps:])
    source = write_chat(tmp_path / "in", [row])
    source.write_text(json.dumps({**build(row), "id": "chat-1", "images": row["images"]}, indent=1))  # many lines
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert (task.instruction, len(task.steps), _actions(task)[-1][0]) == ("Open study 1", n_steps, "COMPLETE")


def test_broken_object_over_many_lines_is_refused_as_one(tmp_path):
    (tmp_path / "rows.json").write_text('{\n "messages": [],\n "images"\n}')
    with pytest.raises(UserError, match="expected one object, one a line, or a list of them"):
        convert.main(["messages", str(tmp_path / "rows.json"), str(tmp_path / "out")])


def test_id_that_comes_again_is_told_of_the_column_of_tasks(tmp_path):
    rows = [build_chat_row(n, (OURS[0],), id="e1") for n in (1, 2)]
    _, report = _convert("messages", write_chat(tmp_path / "in", rows), tmp_path / "out")
    (dropped,) = report["dropped"]
    assert dropped["reason"].startswith("found the id 'e1' again")
    assert "name the column of its id with --task_column" in dropped["reason"]


def test_several_calls_in_one_answer_are_steps_on_one_screenshot(tmp_path):
    answer = build_call(action="left_click", coordinate=[1, 2]) + build_call(action="type", text="liver")
    source = write_chat(tmp_path / "in", [build_chat_row(1, (answer,))])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert [kind for kind, *_ in _actions(task)] == ["CLICK", "TEXT"]
    assert len({s.image_path for s in task.steps}) == 1


def test_calls_of_every_code_block_are_steps(tmp_path):
    blocks = ("pyautogui.click(1, 2)", "It said: no such study", "pyautogui.write('liver')")
    answer = "\n".join(f"```python\n{block}\n```" for block in blocks)
    source = write_chat(tmp_path / "in", [build_chat_row(1, (answer,))])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert [kind for kind, *_ in _actions(task)] == ["CLICK", "TEXT"]


@pytest.mark.parametrize(
    ("coordinates", "point", "expected"),
    [
        ("fraction", [0.5, 0.25], [500, 250]),
        ("thousandths", [500, 250], [500, 250]),
        ("pixels", [160, 48], [500, 250]),
    ],
)
def test_units_are_those_that_are_given_and_what_lies_beyond_is_an_error(tmp_path, coordinates, point, expected):
    beyond = {"fraction": [1.01, 0], "thousandths": [1001, 0], "pixels": [321, 0]}[coordinates]
    rows = [build_chat_row(n, (build_call(action="click", coordinate=p),)) for n, p in ((1, point), (2, beyond))]
    source = write_chat(tmp_path / "in", rows)
    (task,), report = _convert("messages", source, tmp_path / "out", "--coordinates", coordinates)
    assert task.steps[0].gold.action.arguments["point"] == expected
    (dropped,) = report["dropped"]
    assert f"found the point {beyond}" in dropped["reason"]
    assert f"--coordinates is {coordinates}" in dropped["reason"]


def test_places_whose_units_nobody_said_are_refused(tmp_path):
    source = write_chat(tmp_path / "in", [build_chat_row(1)])
    with pytest.raises(UserError, match=r"nothing says its units; expected --coordinates fraction"):
        convert.main(["messages", str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ({"ref": ["Save"], "bbox": [[80, 24, 240, 72]]}, ((80, 24, 240, 72), [500, 250])),
        (
            {"ref": ["Save"], "bbox": [[0.25, 0.125, 0.75, 0.375]], "bbox_type": "norm1"},
            ((80, 24, 240, 72), [500, 250]),
        ),
        ({"ref": ["Save"], "bbox": [[160, 48]]}, (None, [500, 250])),
    ],
)
def test_objects_of_ms_swift_stand_in_the_answer_in_the_units_they_say(tmp_path, objects, expected):
    answer = "Action: click(target='<ref-object>', start_box='<bbox>')"
    source = write_chat(tmp_path / "in", [build_chat_row(1, (answer,), objects=objects)])
    (task,), _ = _convert("messages", source, tmp_path / "out")
    assert _actions(task) == [("CLICK", "Save", {"point": expected[1]})]
    assert task.steps[0].grounding.bbox == expected[0]


@pytest.mark.parametrize(
    ("objects", "coordinates", "expected"),
    [
        ({"ref": [], "bbox": [[0.25, 0.125, 0.75, 0.375]], "bbox_type": "norm1"}, "thousandths", (80, 24, 240, 72)),
        ({"ref": [], "bbox": [[80, 24, 240, 72]], "bbox_type": "real"}, "thousandths", (80, 24, 240, 72)),
        ({"ref": [], "bbox": [[250, 125, 750, 375]]}, "thousandths", (80, 24, 240, 72)),
    ],
)
def test_units_of_objects_are_those_of_their_bbox_type_before_the_given_ones(tmp_path, objects, coordinates, expected):
    answers = ("Action: click(start_box='<bbox>')", "Action: click(start_box='(500,250)')")
    source = write_chat(tmp_path / "in", [build_chat_row(1, answers, objects=objects)])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", coordinates)
    assert task.steps[0].grounding.bbox == expected
    assert [arguments for *_, arguments in _actions(task)] == [{"point": [500, 250]}] * 2


@pytest.mark.parametrize("objects", [{"ref": [], "bbox": []}, {"ref": None, "bbox": None, "bbox_type": None}, {}])
def test_objects_without_a_box_say_no_units(tmp_path, objects):
    source = write_chat(tmp_path / "in", [build_chat_row(1, ("click(start_box='(25,50)')",), objects=objects)])
    with pytest.raises(UserError, match="nothing says its units"):
        convert.main(["messages", str(source), str(tmp_path / "out")])


def test_pointer_is_not_taken_over_into_other_units(tmp_path):
    answers = ("click(start_box='<bbox>')", "type(content='liver')")
    objects = {"ref": [], "bbox": [[80, 24, 240, 72]], "bbox_type": "real"}
    source = write_chat(tmp_path / "in", [build_chat_row(1, answers, objects=objects)])
    (task,), _ = _convert("messages", source, tmp_path / "out", "--coordinates", "fraction")
    assert _actions(task)[1] == ("TEXT", "the focused field", {"text": "liver"})


def test_objects_of_ms_swift_count_through_the_conversation(tmp_path):
    answer = "Action: click(start_box='<bbox>')"
    objects = {"ref": ["Save"], "bbox": [[1, 2, 3, 4], [80, 24, 240, 72], [0, 96, 160, 192]]}
    row = build_chat_row(1, (answer, answer), objects=objects)
    row["messages"][1]["content"] = "<image>Press <ref-object>, right of <bbox>"
    (task,), _ = _convert("messages", write_chat(tmp_path / "in", [row]), tmp_path / "out")
    assert task.instruction == "Press Save, right of (1, 2, 3, 4)"
    assert [step.grounding.bbox for step in task.steps] == [(80, 24, 240, 72), (0, 96, 160, 192)]


def test_pointer_stays_where_the_row_before_left_it(tmp_path):
    answers = ("pyautogui.click(x=0.25, y=0.5)", "Action: Scroll down\nCode: pyautogui.scroll(-5)")
    rows = [
        build_chat_row(n, (answer,), id=None, episode="e1", instruction="Open the study")
        for n, answer in enumerate(answers)
    ]
    source = write_chat(tmp_path / "in", rows)
    (task,), _ = _convert(
        "messages", source, tmp_path / "out", "--coordinates", "fraction", "--task_column", "episode"
    )
    assert _actions(task)[1] == ("SCROLL", "Scroll down", {"direction": "down", "point": [250, 500]})


@pytest.mark.parametrize(
    ("coordinates", "box", "expected"),
    [
        ("fraction", [0.25, 0.125, 0.75, 0.375], (80, 24, 240, 72)),
        ("thousandths", [250, 125, 750, 375], (80, 24, 240, 72)),
        ("pixels", [80, 24, 240, 72], (80, 24, 240, 72)),
    ],
)
def test_boxes_of_a_task_table_are_in_the_units_that_are_given(tmp_path, coordinates, box, expected):
    import pyarrow
    from pyarrow import parquet

    row = build_careflow_row(1)
    data = json.loads(row["json_data"])
    data["trajectory"][0]["bbox"] = box
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "json_data": json.dumps(data)}]), tmp_path / "t.parquet")
    convert.main(["careflow", str(tmp_path / "t.parquet"), str(tmp_path / "out"), "--coordinates", coordinates])
    (task,) = load_trajectories(tmp_path / "out/data.csv", show_progress=False)
    assert task.steps[0].grounding.bbox == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ["../secret.png"] * 4}, "found no screenshot '../secret.png'"),
        ({"images": ["{root}/secret.png"] * 4}, "found no screenshot"),
        ({"images": ["https://example.org/1.png"] * 4}, "found no screenshot 'https://example.org/1.png'"),
        ({"images": ["file:///etc/passwd"] * 4}, "found no screenshot"),
        ({"images": ["pipe.png"] * 4}, "found no screenshot 'pipe.png'"),
        ({"images": ["data:image/png;base64,%%"] * 4}, "found a broken data URI"),
        ({"images": []}, "found 0 pictures in images and 4 placeholders"),
        ({"images": None, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
         "found no picture before the answer"),
        ({"messages": [{"role": "user", "content": "<image>"}] * 4}, "found no assistant's turn"),
        ({"messages": [{"role": "robot", "content": ""}]}, "found a message of 'robot'"),
        ({"messages": []}, "found no turn in messages; expected at least a question with a picture"),
        ({"messages": "5"}, "found no list of objects in messages"),
        ({"objects": {"bbox": [[1, 2]], "bbox_type": ["real"]}}, "found the bbox_type \"['real']\" in objects"),
        ({"objects": {"bbox": 5}}, "found the objects {'bbox': 5}; expected lists in bbox and ref"),
        ({"messages": None}, "found the columns id, messages, images"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "found a part"),
        ({"images": ["shots/1-0.png"], "messages": [{"role": "user", "content": "<image>"},
                                                    {"role": "assistant", "content": "I do not know"}]},
         "found no action in 'I do not know'; expected JSON or calls"),
        ({"images": ["shots/1-0.png"],
          "messages": [{"role": "user", "content": "<image>"},
                       {"role": "assistant", "content": build_call(action="fly", coordinate=[1, 1])}]},
         "the action 'fly', which the action map does not have; add a row for it with --action_map"),
        *(({"images": ["shots/1-0.png"],
            "messages": [{"role": "user", "content": "<image>"},
                         {"role": "assistant", "content": build_call(action="left_click", coordinate=place)}]},
           "expected [x, y] or [x1, y1, x2, y2]")
          for place in ([10**400] * 4, [float("nan"), 1], "row 2, column 3", "1e-1, 2e-1")),
    ],
)  # fmt: skip
def test_chat_row_that_cannot_be_used_is_dropped_with_the_reason(tmp_path, changes, reason):
    source = write_chat(tmp_path / "in", [build_chat_row(1)])
    (tmp_path / "secret.png").write_bytes(encode_screen(1))
    os.mkfifo(tmp_path / "in/pipe.png")
    bad = json.loads(json.dumps({**build_chat_row(2), **changes}).replace("{root}", str(tmp_path)))
    source.write_text(source.read_text() + json.dumps(bad))
    tasks, report = _convert("messages", source, tmp_path / "out", "--coordinates", "thousandths")
    assert [t.task_id for t in tasks] == ["chat-1"]
    assert reason in report["dropped"][0]["reason"]


def _write_named(folder, names, files):
    """Write a row for every name of a screenshot, and the files; return the source, and the folder of the files."""
    for n, file in enumerate(files):
        (folder / "shots" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "shots" / file).write_bytes(encode_screen(n))
    rows = [build_chat_row(n, (OURS[0],), images=[name]) for n, name in enumerate(names)]
    rows.append(build_chat_row("ok", (OURS[0],), images=["ok.png"]))
    (folder / "shots/ok.png").write_bytes(encode_screen(99))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl", folder / "shots"


NAMED = {  # files that are there, names in the rows, what becomes of each: the file, or None where its task is dropped
    "one file for two folders": (["1.png"], ["/data/epA/1.png", "/data/epB/1.png"], [None, None]),
    "one file for a folder and its own": (["epA/1.png"], ["epA/1.png", "/data/epB/epA/1.png"], ["epA/1.png"] * 2),
    "paths of another machine": (
        ["epA/1.png", "epB/1.png", "1.png"], ["/data/epA/1.png", "D:\\x\\epB\\1.png", "../epA/1.png"],
        ["epA/1.png", "epB/1.png", "epA/1.png"],
    ),
    "one path in two spellings": (["1.png"], ["/data/epA/1.png", "/data//epA/./1.png", "1.png"], ["1.png"] * 3),
    "an address": (["1.png"], ["http://x.y/1.png", "s3://b/1.png"], [None, None]),
    "an address of a file": (["epA/1.png"], ["file:///data/epA/1.png", "file:///data/ep%41/1.png"], ["epA/1.png"] * 2),
}  # fmt: skip


@pytest.mark.parametrize(("files", "names", "expected"), NAMED.values(), ids=NAMED)
def test_screenshot_is_never_that_of_another_name(tmp_path, files, names, expected):
    source, shots = _write_named(tmp_path, names, files)
    tasks, report = _convert("messages", source, tmp_path / "out", "--images_dir", shots)
    shown = {task.task_id: task.steps[0].image_path.read_bytes() for task in tasks}
    assert [shown.get(f"chat-{n}") for n in range(len(names))] == [
        file and (shots / file).read_bytes() for file in expected
    ]
    assert "chat-ok" in shown
    if not any(expected) and "http" not in names[0]:
        reasons = [task["reason"] for task in report["dropped"]]
        assert (
            "'1.png' by the end of the name '/data/epA/1.png', and also for '/data/epB/1.png' (task chat-1)"
            in reasons[0]
        )
        assert "also for '/data/epA/1.png' (task chat-0): which of them it shows is not known" in reasons[1]


def test_folder_that_is_one_tasks_own_is_not_anothers(tmp_path):
    (tmp_path / "x").mkdir()
    source, shots = _write_named(tmp_path / "x", ["shots/1.png", "epB/1.png"], ["1.png"])
    tasks, report = _convert("messages", source, tmp_path / "out", "--images_dir", shots)
    assert [task.task_id for task in tasks] == ["chat-0", "chat-ok"]
    assert (
        "found '1.png' by the end of the name 'epB/1.png', and also for 'shots/1.png'"
        in report["dropped"][0]["reason"]
    )


def test_bare_name_is_remarked_on_where_other_screenshots_are_found_with_their_folders(tmp_path):
    source, shots = _write_named(tmp_path, ["epA/1.png", "epC/2.png"], ["epA/1.png", "2.png"])
    _, report = _convert("messages", source, tmp_path / "out", "--images_dir", shots)
    assert report["remarks"] == {"chat-1": ["step 1: found 'epC/2.png' by its bare name alone"]}


@pytest.mark.parametrize("kind", ["records", "agentnet", "careflow"])
def test_other_formats_confuse_no_two_names_of_a_screenshot_either(tmp_path, kind):
    (tmp_path / "shots").mkdir()
    for name in ("1.png", "ok.png"):
        (tmp_path / "shots" / name).write_bytes(encode_screen(len(name)))
    done = {"action": "COMPLETE", "target": ""}
    rows = []
    for n, name in enumerate(["/data/epA/1.png", "/data/epB/1.png", "/data/epB/ok.png"]):
        if kind == "records":
            rows.append({"Task_id": f"t{n}", "Image_id": name, "Instruction": "Open", "Output": done, "Grounding": {}})
        elif kind == "agentnet":
            rows.append(build_agentnet_task(n, task_id=f"t{n}"))
            rows[-1]["traj"] = [{"image": name, "value": {"code": "computer.terminate(status='success')"}}]
        else:
            data = {"id": n, "instruction": "Open", "trajectory": [{"step": 1, **done, "screenshot": name}]}
            rows.append({"task_id": f"t{n}", "json_data": json.dumps(data)})
    source = tmp_path / f"rows.{'csv' if kind == 'careflow' else 'jsonl'}"
    lines = map(json.dumps, rows)
    source.write_text(format_csv(rows, rows[0]) if kind == "careflow" else "\n".join(lines))
    convert.main([kind, str(source), str(tmp_path / "out"), "--images_dir", str(tmp_path / "shots")])
    report = json.loads((tmp_path / "out/conversion_report.json").read_text())
    assert [task["task_id"] for task in report["dropped"]] == ["t0", "t1"]
    assert report["n_tasks"] == 1


def test_hub_data_set_that_cannot_be_reached_is_named(tmp_path):
    with pytest.raises(UserError, match="nobody/nothing: found no file of this name, and no data set can be opened"):
        convert.main(["messages", "nobody/nothing", str(tmp_path / "out")])


def test_rows_of_the_users_table_replace_those_of_the_format(tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text(
        "keydown: {action: KEY, keys: $1}\n"
        "DoubleClick: {action: CLICK, point: $point, target: icon}\n"
        "scroll: skip\nhotkey: null\n"
    )
    row = build_agentnet_task(1)
    row["traj"][0]["value"]["code"] = "pyautogui.keyDown('shift')"
    del row["traj"][2]
    source = write_agentnet(tmp_path / "in", [row, build_agentnet_task(2)])
    (task,), report = _convert("agentnet", source, tmp_path / "out", "--action_map", table)
    assert _actions(task)[:2] == [("KEY", "", {"keys": "shift"}), ("CLICK", "icon", {"point": [100, 200]})]
    assert "SCROLL" not in [kind for kind, *_ in _actions(task)]
    assert "the action 'hotkey', which the action map does not have" in report["dropped"][0]["reason"]
    assert "doubleClick" not in report["action_map"]


def test_place_that_a_row_names_as_the_source_does_is_in_the_units_of_the_source(tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text("left_click: {action: CLICK, point: $coordinate}\nmove: {action: DRAG, to: $goal}\n")
    answers = (build_call(action="left_click", coordinate=[80, 96]), build_call(action="move", goal="(160, 48)"))
    source = write_chat(tmp_path / "in", [build_chat_row(1, answers)])
    (task,), _ = _convert(
        "messages", source, tmp_path / "out", "--coordinates", "pixels", "--action_map", table
    )  # 320 x 192
    assert [arguments for *_, arguments in _actions(task)] == [{"point": [250, 500]}, {"to_x": 500, "to_y": 250}]


@pytest.mark.parametrize("kind", DEFAULT_MAPS)
def test_table_that_is_written_reads_back_as_the_default_one(tmp_path, kind):
    path = tmp_path / "new/folder/map.yaml"
    convert.main(["action-map", kind, str(path)])
    assert load_action_map(kind, path, DESKTOP_ACTIONS).rows == DEFAULT_MAPS[kind]
    with pytest.raises(UserError, match="found something there; expected a new file"):
        convert.main(["action-map", kind, str(path)])


def test_page_on_converting_names_every_action_of_the_tables():
    page = (ROOT / "docs/convert.md").read_text(encoding="utf-8")
    for rows in DEFAULT_MAPS.values():
        assert [name for name in rows if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("click: {action: PUSH}", "click: found the action 'PUSH'; expected one of CLICK"),
        ("click: [CLICK]", "expected skip, the name of an action"),
        ("click: {point: $point}", "expected skip, the name of an action"),
        ("click: {action: CLICK, point: [1, 2]}", "found 'point': '[1, 2]'; expected a constant"),
        ("write: {action: TEXT, txt: $text}", "found txt; expected arguments of TEXT: action, point, target, text"),
        ("5: skip", "expected the name of an action in the source"),
        ("click: skip\nclick: skip", "found key 'click' again"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)),
         "found more than 100000 values, through references"),
        ("- click", "found list; expected lines"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_table_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load_action_map("agentnet", tmp_path / "map.yaml", DESKTOP_ACTIONS)


def test_recipes_actions_count_where_one_is_given(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "actions:\n- {name: CLICK, description: press it}\n- {name: COMPLETE, description: done, is_final: true}\n"
    )
    rows = [build_agentnet_task(n) for n in (1, 2)]
    rows[0]["traj"] = [rows[0]["traj"][0], rows[0]["traj"][-1]]
    source = write_agentnet(tmp_path / "in", rows)
    convert.main(["agentnet", str(source), str(tmp_path / "out"), "--recipe", str(recipe)])
    report = json.loads((tmp_path / "out/conversion_report.json").read_text())
    assert not (tmp_path / "out/actions.yaml").exists()
    assert report["n_tasks"] == 1
    assert "turns 'doubleClick' into DOUBLE_CLICK; expected one of CLICK, COMPLETE" in report["dropped"][0]["reason"]
    (task,) = load_trajectories(tmp_path / "out/data.csv", show_progress=False)
    assert dict(task.steps[0].gold.action.arguments) == {}
    pointed = [ActionType("CLICK", "press it", {"point": ()}), ActionType("COMPLETE", "done", is_final=True)]
    (task,) = load_trajectories(tmp_path / "out/data.csv", actions=pointed, show_progress=False)
    assert dict(task.steps[0].gold.action.arguments) == {"point": [250, 500]}  # the data has it, whoever reads it


def test_no_code_of_a_source_is_run(tmp_path):
    for code in (f"open({str(tmp_path / 'x')!r}, 'w')", "[].append(1)", "f()()", "pyautogui.click(*[1, 2])"):
        with (
            pytest.raises(ValueError, match="expected a call|does not have|found no")
            if "open" not in code
            else (pytest.raises(ValueError, match="does not have"))
        ):
            action_map = load_action_map("agentnet", None, DESKTOP_ACTIONS)
            for action in read_calls(code):
                action_map.map_step(action, 1, b"", "fraction")
    assert not (tmp_path / "x").exists()


def test_answer_without_end_is_refused():
    with pytest.raises(ValueError, match="found an answer of 20001 characters"):
        read_turn("x" * 20_001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["careflow", "t", "o", "--task_column", "x"], "--task_column: careflow has no such option"),
        (["agentnet", "t", "o", "--format", "sharegpt"], "--format: agentnet has no such option"),
        (["to-messages", "t", "o", "--coordinates", "pixels"], "--coordinates: to-messages has no such option"),
        (["action-map", "careflow", "o"], "found 'careflow'; expected one of messages, agentnet, screenagent"),
    ],
)
def test_flags_of_another_format_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        convert.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_rows_are_dropped_in_words_or_converted(tmp_path, seed):
    rng = random.Random(seed)
    trajectory, chat = build_agentnet_task(0), build_chat_row(0)
    session = write_screenagent_session(tmp_path / "sessions", "s0")
    records = {path.name: json.loads(path.read_text()) for path in session.glob("*.json")}
    source = write_agentnet(tmp_path / "agentnet", [trajectory])
    rows = write_chat(tmp_path / "chat", [chat])
    for path, whole in ((source, trajectory), (rows, chat)):
        damaged = [_damage(rng, whole) for _ in range(150)]
        lines = [{**row, "task_id": f"d{i}", "id": f"d{i}"} if isinstance(row, dict) else row
                 for i, row in enumerate(damaged)]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, [whole, *lines])))
    for i in range(1, 60):
        folder = tmp_path / f"sessions/s{i}"
        folder.mkdir()
        (folder / "images").symlink_to(session / "images")
        for name, record in records.items():
            (folder / name).write_text(json.dumps(_damage(rng, record) if rng.random() < 0.4 else record))
    flags = ("--coordinates", "thousandths")
    for kind, where, n_tasks in (
        ("agentnet", source, 151), ("messages", rows, 151), ("screenagent", tmp_path / "sessions", 60),
    ):  # fmt: skip
        tasks, report = _convert(kind, where, tmp_path / f"out-{kind}", *(flags if kind == "messages" else ()))
        assert len(tasks) + len(report["dropped"]) == n_tasks
        assert len(report["dropped"]) > 5
