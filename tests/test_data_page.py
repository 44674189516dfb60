"""`python -m sft.check --html`: what the page holds, also of bad rows, and what it does in a real browser."""

import json
import re

import pytest
from trajectory_samples import build_output, build_task, build_tasks, write_screenshots, write_trajectories

from sft.agent import AgentConfig
from sft.check import __main__ as check
from sft.data.load import load_trajectories
from sft.memory import lagged
from sft.prompts import build_prompt, build_system_text

ENDS_SCRIPT = "</script><script>document.title='pwned'</script>"
HOSTILE = f"{ENDS_SCRIPT}<img src=x onerror=\"document.title='pwned'\"><!-- & \u2028 '"


def write_page(tmp_path, csv_path, *flags):
    """Check a file with --html in this process; return exit code, the page's text and what its script reads."""
    path = tmp_path / "pages" / "page.html"
    try:
        check.main([str(a) for a in (csv_path, "--html", path, *flags)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    text = path.read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return code, text, json.loads(block[1])


def list_notes(data, row):
    steps = [step for task in data["tasks"] for step in task["steps"] if step["row"] == row]
    return [(kind, text) for step in steps for _, kind, text in step["notes"]]


def test_page_holds_every_prompt_and_answer_as_training_builds_them(tmp_path):
    csv_path = write_trajectories(tmp_path, build_tasks(2, n_steps=3))
    code, _, data = write_page(tmp_path, csv_path)
    assert code == 0
    agent, task = AgentConfig(), load_trajectories(csv_path, show_progress=False)[0]
    memory = list(lagged(task.golds, "model", agent.memory_budget_chars))[2]
    step = data["tasks"][0]["steps"][2]
    passages = [data["passages"][number] for number in step["prompt"]]
    assert passages[0] == ["system", build_system_text(agent)]
    assert passages[1] == ["user", None]  # the screenshot
    user = build_prompt(task.instruction, memory, agent)[1]["content"][1]["text"]
    assert "\n".join(text for _, text in passages[2:]) == user
    assert '"last_action":"SCROLL"' in passages[3][1]  # the memory of the step before
    assert json.loads(step["answer"])["action"] == "COMPLETE"
    assert (step["row"], step["action"], step["notes"]) == (4, "COMPLETE", [])


def test_with_a_tokenizer_the_whole_prompt_is_shown_and_its_tokens_are_counted(tmp_path, tiny_checkpoints):
    csv_path = write_trajectories(tmp_path, build_tasks(1))
    code, page, data = write_page(tmp_path, csv_path, "--tokenizer", tiny_checkpoints["qwen3_vl"])
    step = data["tasks"][0]["steps"][0]
    roles = [data["passages"][number][0] for number in step["prompt"]]
    assert roles == ["template", "system", "template", "user", "user", "user", "user", "template"]
    assert data["passages"][step["prompt"][-1]][1].endswith("<|im_start|>assistant\n")
    assert data["turn_end"] == "<|im_end|>"
    n_prompt, n_answer, n_image = step["n_tokens"]
    assert n_prompt > n_image > 0 and n_answer > 10
    assert "Tokens per prompt" in page and "Tokens per answer" in page


def test_rows_that_are_refused_stand_in_the_page_with_their_problems(tmp_path):
    rows = build_tasks(4)
    rows[1]["Output"] = build_output("HOVER", "Search")
    rows[4]["Grounding"] = "{broken"
    rows[8]["Image_id"] = "screens/gone.png"
    code, page, data = write_page(tmp_path, write_trajectories(tmp_path, rows))
    assert code == 1
    assert [(task["id"], task.get("is_bad", False)) for task in data["tasks"]] == [
        ("t1", True),
        ("t2", True),
        ("t3", True),
        ("t4", False),
    ]
    step = data["tasks"][0]["steps"][1]
    assert (step["row"], step["action"], step["target"]) == (3, "HOVER", "Search")
    assert dict(step["cells"])["Output"] == rows[1]["Output"]
    assert step["box"] == [3.125, 10.417, 25.0, 10.417]
    assert [kind for kind, _ in list_notes(data, 3)] == ["Output"]
    assert [kind for kind, _ in list_notes(data, 6)] == ["Grounding"]
    assert data["tasks"][1]["steps"][1]["action"] == json.loads(rows[4]["Output"])["action"]
    assert data["tasks"][2]["steps"][2]["image"] is None
    assert '<a href="#row-3">row 3</a>' in page


@pytest.mark.parametrize(("n_bad", "fault"), [(1, {"Task_id": ""}), (6, {"Output": "{"})])
def test_files_without_a_usable_task_have_a_page_of_their_rows(tmp_path, n_bad, fault):
    rows = build_tasks(2)
    for row in rows[:n_bad]:
        row |= fault
    code, page, data = write_page(tmp_path, write_trajectories(tmp_path, rows))
    assert code == 1
    assert sorted(step["row"] for task in data["tasks"] for step in task["steps"]) == list(range(2, 8))
    assert all(task["is_bad"] for task in data["tasks"])
    assert [bool(list_notes(data, row)) for row in range(2, 8)] == [True] * n_bad + [False] * (6 - n_bad)
    assert "No task of this file can be used." in page


def test_row_that_has_no_columns_stands_in_the_page_without_cells(tmp_path):
    path = write_trajectories(tmp_path, build_tasks(2))
    path.write_text(path.read_text() + "a,b\n")
    _, _, data = write_page(tmp_path, path)
    (task,) = [task for task in data["tasks"] if task.get("is_bad")]
    assert (task["id"], [(step["row"], step["cells"]) for step in task["steps"]]) == ("a", [(8, [])])
    assert list_notes(data, 8) == [("file", "found 2 cells; expected 8")]


def test_file_that_is_no_table_has_a_page_that_says_so(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n1;2\n")
    code, page, data = write_page(tmp_path, tmp_path / "x.csv")
    assert (code, data["tasks"]) == (1, [])
    assert "separated by semicolons" in page


def test_labels_that_contradict_each_other_are_told_beside_their_steps(tmp_path):
    rows = [row for i in range(3) for row in build_task(f"t{i}", f"Open the study of DOE{i}", 2, n_images=1)]
    for row in rows:
        row["Grounding"] = json.dumps({"bbox": [10, 20, 90, 40], "screen": [320, 192]})
    rows[2]["Output"] = build_output("CLICK", "Serach")
    rows[4]["Grounding"] = json.dumps({"bbox": [200, 100, 240, 120], "screen": [320, 192]})
    for row in rows[1::2]:
        row["Output"] = build_output("COMPLETE", "")
    _, page, data = write_page(tmp_path, write_trajectories(tmp_path, rows))
    assert list_notes(data, 4) == [("label", "on this screenshot row 2 has 'Search' for this box")]
    assert ("label", "on this screenshot row 4 has 'Serach' for this box") in list_notes(data, 2)
    assert list_notes(data, 6) == [("place", "on this screenshot row 2 has 'Search' elsewhere")]
    assert "2 steps</button>: another row gives the same box on the same screenshot another target" in page


def test_warnings_stand_beside_the_steps_that_they_are_about(tmp_path):
    rows = [*build_task("a", "Mail jane.doe@example.org", 3), *build_task("b", "Close \u202eit", 3)]
    rows += [*build_task("c", "Close the list", 2), *build_task("d", "close THE list", 2)]
    rows[1]["Grounding"] = json.dumps({"bbox": [300, 20, 400, 40], "screen": [320, 192]})
    rows[5]["Output"] = json.dumps({"action": "CLICK", "target": "Search"})
    rows[4]["Slide_number"], rows[5]["Slide_number"] = "3", "4"
    _, _, data = write_page(tmp_path, write_trajectories(tmp_path, rows))
    kinds = {row: {kind for kind, _ in list_notes(data, row)} - {"label", "place"} for row in range(2, 8)}
    assert kinds == {
        2: {"personal data"},
        3: {"box"},
        4: set(),
        5: {"hidden character"},
        6: {"step number"},
        7: {"memory", "end"},
    }
    assert [task["notes"] for task in data["tasks"][2:]] == [
        [["warning", "same goal", "task d has the same goal"]],
        [["warning", "same goal", "task c has the same goal"]],
    ]
    assert data["tasks"][1]["goal"] == "Close \\u202eit"  # what nobody sees is written out


def test_point_of_an_answer_is_in_the_page_and_a_missing_one_is_told(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "actions:\n- {name: CLICK, description: press it, arguments: {point: []}}\n"
        "- {name: COMPLETE, description: done, is_final: true}\n"
    )
    rows = [*build_task("a", "Open it", 4), *build_task("b", "Close it", 2)]
    rows[0]["Output"] = build_output("CLICK", "Search", point=[150, 150])
    rows[1]["Output"] = build_output("CLICK", "Name")  # the middle of its box
    rows[2]["Output"], rows[2]["Grounding"] = build_output("CLICK", "List"), ""
    rows[4]["Output"] = build_output("CLICK", "Search", point=[900, 150])  # outside its box
    code, _, data = write_page(tmp_path, write_trajectories(tmp_path, rows), "--recipe", recipe)
    assert [step["point"] for step in data["tasks"][0]["steps"]] == [[150, 150], [156, 156], None, None]
    assert ("point", "the answer has no point: Grounding has no box") in list_notes(data, 4)
    assert (code, data["tasks"][1]["is_bad"]) == (1, True)
    assert "outside it" in list_notes(data, 6)[0][1]


def test_screenshots_are_linked_from_the_page_or_embedded_and_the_sizes_are_told(tmp_path, capsys):
    csv_path = write_trajectories(tmp_path, build_tasks(2))
    _, page, _ = write_page(tmp_path, csv_path)
    assert re.findall('data-url="(.*?)"', page) == ["../screens/1.png", "../screens/0.png"]
    said = " ".join(capsys.readouterr().out.split())
    assert "6 steps; 2 screenshots of 0.0 MB stay where they are; --embed puts small ones into the page" in said
    _, page, _ = write_page(tmp_path, csv_path, "--embed")
    assert "data-url" not in page and page.count('<script type="text/plain" id="image-') == 2
    assert "are in it, made small: 0.0 MB" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--html", "data.csv"), "expected a name that ends with .html"), (("--embed",), "found no --html")],
)
def test_flags_that_make_no_page_are_refused(tmp_path, capsys, flags, said):
    path = write_trajectories(tmp_path, build_tasks(1))
    with pytest.raises(SystemExit) as stop:
        check.main([str(path), *flags])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def build_hostile_tasks(tmp_path):
    """Every text of a file looks like a page; names of files hold quotes, one more row is bad."""
    rows = build_tasks(3)
    name = "a\"b'c<d>&#e %20?.png"
    write_screenshots(tmp_path)
    (tmp_path / "screens" / name).write_bytes((tmp_path / "screens/0.png").read_bytes() + b"\0")
    for row in rows[:3]:
        row |= {"Task_id": HOSTILE, "Instruction": HOSTILE, "Application": HOSTILE, "Group": HOSTILE}
        row["Image_id"] = f"screens/{name}"
    rows[0]["Output"] = build_output("TEXT", HOSTILE, [HOSTILE], text=HOSTILE)
    rows[0]["Grounding"] = json.dumps({"bbox": [80, 48, 160, 96], "screen": [320, 192], "application": HOSTILE})
    rows[7]["Output"] = HOSTILE
    rows[7]["Image_id"] = HOSTILE
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--embed",)])
def test_data_page_in_a_real_browser(browser, tmp_path, flags):
    csv_path = write_trajectories(tmp_path, build_hostile_tasks(tmp_path), f"a\"'<b>{'e' * len(flags)}.csv")
    assert write_page(tmp_path, csv_path, *flags)[0] == 1
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend([request.url] if request.url.startswith("http") else []))
    page.goto((tmp_path / "pages/page.html").as_uri())
    shown = page.locator("#shown")
    assert shown.inner_text() == "9 of 9 steps, 3 of 3 tasks"

    # What a file holds is text, also where it looks like a page.
    tasks = page.locator(".task")
    hostile = tasks.filter(has_text="pwned").first
    hostile.locator("summary").first.click()
    step = hostile.locator(".step").first
    assert step.locator(".what bdi").first.text_content() == HOSTILE
    assert HOSTILE in step.locator(".model").text_content()
    assert page.title() == f"Data: {csv_path}"

    # The box is where it is on the screen: a quarter from the left and the top, a quarter wide and high.
    step.locator(".shot img").evaluate("image => image.decode()")
    shot, box = step.locator(".shot img").bounding_box(), step.locator(".gold-box").bounding_box()
    for edge, length in (("x", "width"), ("y", "height")):
        assert box[edge] - shot[edge] == pytest.approx(shot[length] / 4, abs=1.5)
        assert box[length] == pytest.approx(shot[length] / 4, abs=1.5)

    def choose(view="tasks", application="", action="", note="", order="file", text=""):
        page.check(f"input[name=view][value={view}]")
        for name, value in {"application": application, "action": action, "note": note, "order": order}.items():
            page.select_option(f"[name={name}]", value)
        page.fill("[name=text]", text)
        return shown.inner_text().split(" of ")[0]

    assert choose(application=HOSTILE) == "3"
    assert choose(action="COMPLETE") == "3"
    assert choose(note="problem") == "1"
    # `text_content`, as a step that was not yet drawn (`content-visibility: auto`) has no `inner_text`.
    assert tasks.locator(".notes").first.text_content().startswith("Output")
    assert choose(note="kind Output") == "1"
    assert choose(text="row 5") == "1"
    assert choose(text="DOE002") == "3"
    assert choose(text="no such thing") == "0"

    # In the view of targets a card shows the box in its cut, and the viewer turns what the filters leave.
    assert choose(view="targets", order="rare", action="COMPLETE") == "3"
    assert page.locator(".card").count() == 3
    choose(view="targets", text="row 2")
    card = page.locator(".card").first
    card.locator(".gold-box").wait_for()
    crop, box = card.locator(".crop").bounding_box(), card.locator(".gold-box").bounding_box()
    assert box["x"] + box["width"] / 2 == pytest.approx(crop["x"] + crop["width"] / 2, abs=2)
    picture = card.locator("img").bounding_box()
    assert (box["x"] - picture["x"]) / picture["width"] == pytest.approx(0.25, abs=0.01)
    assert (box["y"] - picture["y"]) / picture["height"] == pytest.approx(0.25, abs=0.01)
    choose(view="targets", action="COMPLETE")
    page.locator(".card").first.click()
    caption = page.locator("#viewer-caption")
    assert caption.inner_text().endswith("(1 of 3)")
    page.keyboard.press("ArrowRight")
    assert caption.inner_text().endswith("(2 of 3)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # there is no more
    assert caption.inner_text().endswith("(3 of 3)")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()

    # A bar filters, a row of a problem is opened.
    choose()
    page.locator("[data-filter=action]", has_text="COMPLETE").click()
    assert shown.inner_text().startswith("3 of 9")
    page.locator("a", has_text="row 9").first.click()
    assert "as it is in the file" in page.locator("#viewer-step").inner_text()
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.title().startswith("Data: ")
    assert complaints == []
    page.close()


@pytest.mark.slow
def test_point_is_at_its_place_in_a_real_browser(browser, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("actions:\n- {name: CLICK, description: press it, is_final: true, arguments: {point: []}}\n")
    rows = build_task("a", "Open it", 1)
    rows[0] |= {"Output": build_output("CLICK", "Search", point=[750, 250]), "Grounding": ""}
    write_page(tmp_path, write_trajectories(tmp_path, rows), "--recipe", recipe)
    page = browser.new_page()
    page.goto(f"{(tmp_path / 'pages/page.html').as_uri()}#row-2")
    page.locator("#viewer-shot img").evaluate("image => image.decode()")
    shot = page.locator("#viewer-shot img").bounding_box()
    point = page.locator("#viewer-shot .gold-point").bounding_box()
    assert point["x"] + point["width"] / 2 == pytest.approx(shot["x"] + 0.75 * shot["width"], abs=1.5)
    assert point["y"] + point["height"] / 2 == pytest.approx(shot["y"] + 0.25 * shot["height"], abs=1.5)
    page.close()


@pytest.mark.slow
def test_10000_steps_are_opened_and_filtered_without_waiting(browser, tmp_path):
    """Bounds are far from what an idle core takes: they tell a page that makes all nodes at once."""
    rows = [row for i in range(1_000) for row in build_task(f"t{i}", f"Open the study of DOE{i:04d}", 10, 2, i)]
    _, text, _ = write_page(tmp_path, write_trajectories(tmp_path, rows))
    assert len(text) < 15e6
    page = browser.new_page()
    page.goto((tmp_path / "pages/page.html").as_uri())
    assert page.locator("#shown").inner_text() == "10,000 of 10,000 steps, 1,000 of 1,000 tasks"
    assert page.evaluate("document.querySelectorAll('*').length") < 3_000
    took = page.evaluate(
        """() => {
          const form = document.getElementById("filters"), started = performance.now();
          form.elements.text.value = "doe0777";
          form.dispatchEvent(new Event("input"));
          return performance.now() - started;
        }"""
    )
    assert page.locator("#shown").inner_text() == "10 of 10,000 steps, 1 of 1,000 tasks"
    assert took < 500
    page.fill("[name=text]", "")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.locator(".task").nth(40).wait_for(state="attached", timeout=5000)  # more come at the end
    page.close()
