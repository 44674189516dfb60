"""Attacks on reports, live reports, data pages, films and terminal tables by every text that reaches them."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from PIL import Image
from rollout_samples import RUN, judge, make_step
from test_live_numbers import EPISODES, make_offline
from test_report import as_rolled_out
from trajectory_samples import build_output, build_tasks, write_trajectories

from eval.reporting.film import write_film
from eval.reporting.live import print_live_summary, write_live_report
from eval.reporting.report import write_report
from eval.reporting.tables import print_comparison, print_summary
from eval.scoring.comparison import compare_runs
from eval.scoring.live import compute_agreement, compute_live_metrics
from eval.scoring.metrics import compute_metrics
from sft.actions import Action
from sft.check import __main__ as check
from sft.pages.frame import render_page

# What each would do if it were read as a page: change the title, or ask ADDRESS for something.
PAYLOADS = [
    "</script><script>document.title='pwned'</script>",
    "</script ><script>document.title='pwned'</script>",
    "<!--<script>document.title='pwned'</script>-->",
    "<img src=ADDRESS/img onerror=\"document.title='pwned'\">",
    '" onmouseover="document.title=\'pwned\'" autofocus onfocus="document.title=\'pwned\'" x="',
    "' onclick='document.title=1' style='background:url(ADDRESS/quote)' x='",
    "<svg onload=\"document.title='pwned'\"><use href=ADDRESS/svg#x /></svg>",
    "<iframe src=ADDRESS/frame srcdoc=\"<script>top.document.title='pwned'</script>\"></iframe>",
    "<object data=ADDRESS/object></object><embed src=ADDRESS/embed>",
    "<video src=ADDRESS/video poster=ADDRESS/poster autoplay></video><audio src=ADDRESS/audio autoplay></audio>",
    "<link rel=stylesheet href=ADDRESS/sheet><link rel=prefetch href=ADDRESS/prefetch>",
    "<style>@import 'ADDRESS/import'; body { background: url(ADDRESS/background); display: none }</style>",
    "</style><style>@font-face { font-family: x; src: url(ADDRESS/font) } * { font-family: x }</style>",
    "}; * { background: url(ADDRESS/css); } .x {",
    "100%;background:url(ADDRESS/width)",
    "<base href=ADDRESS/><meta http-equiv=refresh content='0;url=ADDRESS/refresh'>",
    "<form action=ADDRESS/form><input type=submit autofocus></form>",
    "javascript:document.title='pwned'",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}{{ ''.__class__ }}${7*7}#{7*7}",
    "\u2028\u2029</script\x0b><script>document.title='pwned'</script>",
    "\ud83d<script>document.title='pwned'</script>",
    "\u202e\u200b\ufeff\x1b[2J\x00&lt;script&gt;&#60;img src=x&#62;",
]


@contextmanager
def listen():
    """Yield the address of a server and the requests it is sent."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@contextmanager
def open_page(browser, path):
    """Open a page; make sure at the end that no script but its own ran, and that it asked for nothing elsewhere."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: complaints.extend([request.url] if request.url.startswith("http") else []))
    page.goto(path.as_uri())
    n_scripts, title = page.locator("script").count(), page.title()
    yield page
    assert page.url.split("#")[0] == path.as_uri() and page.title() == title
    assert (
        page.locator("script").count() == n_scripts
        and page.locator("main iframe, main object, main link").count() == 0
    )
    assert complaints == []
    page.close()


def open_everything(page):
    """Open each task and each folded part, look at a screenshot large, and point at everything."""
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.wait_for_timeout(300)
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    point = "['mouseover', 'focus'].forEach((name) => node.dispatchEvent(new Event(name)))"
    page.evaluate(f"document.querySelectorAll('*').forEach((node) => {point})")
    page.locator("button.shot").first.click()
    page.locator("#viewer-caption").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")


def make_hostile_step(number, text):
    action = {"action": "TEXT", "target": text, "text": text}
    memory = {
        "short_term": {text: text, "__proto__": text, "constructor": text},
        "long_term": {"completed_subtasks": [text]},
    }
    return make_step(
        f"{number} {text}",
        0,
        action,
        {**action, "target": f"{text} "} if number % 2 else None,
        application=text,
        group=text,
        instruction=text,
        image_id=f"{number} {text}" if number % 3 else "screen.png",
        raw_text=text,
        memory_before=memory,
        memory_after=memory,
        finish_reason=text,
        parse_problem=text,
        error=text if number % 5 == 0 else None,
        said_elsewhere={text: text},
    )


@pytest.mark.slow
def test_no_text_of_a_report_runs_or_asks_for_anything_in_a_real_browser(browser, tmp_path):
    Image.new("RGB", (320, 200), "white").save(tmp_path / "screen.png")
    with listen() as (address, asked):
        texts = [payload.replace("ADDRESS", address) for payload in PAYLOADS]
        whole = " ".join(texts)
        steps = (make_hostile_step(number, text) for number, text in enumerate(texts))
        verdicts = judge(as_rolled_out(step, tmp_path) for step in steps)
        metrics = compute_metrics(verdicts, mode="own", n_resamples=20)
        run = replace(
            RUN, model_path=whole, test_csv=whole, versions={whole: whole}, data={"unseen_applications": [whole]}
        )
        comparison = compare_runs(verdicts, verdicts, names=(whole, texts[0]), n_resamples=20)
        figure = tmp_path / 'x" onerror="document.title=\'pwned\'".png'
        shutil.copy(tmp_path / "screen.png", figure)
        path = write_report(
            tmp_path, verdicts, metrics, run, tmp_path, [figure], comparison=comparison, others=verdicts
        )
        with open_page(browser, path) as page:
            open_everything(page)
            assert page.locator(".task").count() == len(texts)
            goals = page.locator(".task .goal").all_text_contents()
            assert {text.replace("\0", "") for text in texts[:4]} <= set(goals)
        assert asked == []


@pytest.mark.slow
def test_no_text_of_a_live_report_runs_or_asks_for_anything_in_a_real_browser(browser, tmp_path):
    (tmp_path / "screens").mkdir()
    for i in range(7):
        Image.new("RGB", (200, 100), (40 * i, 90, 200)).save(tmp_path / f"screens/{i}.png")
    with listen() as (address, asked):
        texts = [payload.replace("ADDRESS", address) for payload in PAYLOADS]
        episodes = []
        for number, text in enumerate(texts):
            step = replace(
                EPISODES[1].steps[0],
                predicted=Action("TEXT", text, {"text": text}),
                verdict=text,
                description=text,
                reason=text,
                raw_text=text,
                parse_problem=text,
                finish_reason=text,
                memory_before={"short_term": {text: text}, "long_term": {}},
            )
            about = {"task_id": f"{number} {text}", "instruction": text, "application": text, "group": text}
            episodes.append(
                replace(EPISODES[1 + number % 6], **about, steps=(step, *EPISODES[1].steps[1:]), reason=text)
            )
        metrics = compute_live_metrics([*episodes, replace(EPISODES[-1], reason=" ".join(texts))], n_resamples=20)
        metrics["agreement"] = compute_agreement(EPISODES, make_offline(dict.fromkeys("abcdef", 4)), n_resamples=20)
        info = replace(RUN, mode="live", environment={"module": " ".join(texts)}, model_path=" ".join(texts))
        with open_page(browser, write_live_report(tmp_path, episodes, metrics, info)) as page:
            open_everything(page)
            assert page.locator(".task").count() == len(texts)
        assert asked == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--embed",)])
def test_no_text_of_a_data_file_runs_or_asks_for_anything_in_a_real_browser(browser, tmp_path, flags):
    with listen() as (address, asked):
        texts = [p.replace("ADDRESS", address).replace("\x00", "").replace("\ud83d", "") for p in PAYLOADS]
        rows = [row for task in range(len(texts)) for row in build_tasks(1)]
        for number, row in enumerate(rows):
            text = texts[number // 3]
            row |= {"Task_id": f"{number // 3} {text}", "Instruction": text, "Application": text, "Group": text}
            row["Output"] = build_output("TEXT", text, [text], text=text) if number % 2 else text
        path = write_trajectories(tmp_path, rows)
        with pytest.raises(SystemExit):  # half of the rows hold no answer
            check.main([str(path), "--html", str(tmp_path / "page.html"), *flags])
        with open_page(browser, tmp_path / "page.html") as page:
            open_everything(page)
            page.check("input[name=view][value=targets]")
            page.locator(".card").first.wait_for()
        assert asked == []


NAMES = [
    "a\"b'c<d>&#e %20?.png",
    "javascript:document.title='pwned'.png",
    "http:127.0.0.1.png",
    "%2e%2e%2fscreen.png",
    "data:text\u2028\nhtml.png",
    "\u202egnp.png",
    "x\\..\\y.png",
]


@pytest.mark.slow
def test_file_names_of_linked_screenshots_find_their_own_files_alone(browser, tmp_path):
    (tmp_path / "screens").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (100 + number, 80), "white").save(tmp_path / "screens" / name, "PNG")
    steps = [make_step(f"t{i}", 0, "CLICK", "CLICK", image_id=f"screens/{name}") for i, name in enumerate(NAMES)]
    verdicts = judge(as_rolled_out(step, tmp_path) for step in steps)
    metrics = compute_metrics(verdicts, mode="own", n_resamples=20)
    path = write_report(tmp_path, verdicts, metrics, RUN, tmp_path, images="link")
    with open_page(browser, path) as page:
        for number in range(len(NAMES)):
            page.locator(".task").nth(number).locator("summary").first.click()
            image = page.locator(".task").nth(number).locator(".shot img")
            assert image.evaluate("async (node) => (await node.decode(), node.naturalWidth)") == 100 + number


@pytest.mark.slow
def test_policy_of_a_page_stops_what_was_put_into_it(browser, tmp_path):
    """If ever a text were not escaped: the page's policy runs no foreign script and loads nothing.

    A page cannot forbid that it is left (`<meta http-equiv=refresh>`), so that one is not among them.
    """
    template = tmp_path / "page.html.j2"
    template.write_text(
        '{% extends "frame.html.j2" %}{% block title %}mine{% endblock %}'
        "{% block body %}{{ text|safe }}<dialog id=viewer></dialog>{% endblock %}"
    )
    for kind in ("css", "js"):
        (tmp_path / f"page.{kind}").write_text("")
    with listen() as (address, asked):
        text = " ".join(payload.replace("ADDRESS", address) for payload in PAYLOADS if "refresh" not in payload)
        page_text = render_page(template, "{}", [], {"text": text.replace("\ud83d", "")}, {})
        (tmp_path / "page.html").write_text(page_text)
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_timeout(500)
        assert page.title() == "mine" and page.locator("iframe").count() == 1  # it is in the page, and does nothing
        page.close()
        assert asked == []


DRAWN = [
    "",
    "\x00",
    "\ud83d",
    "\u202eabc",
    "x" * 100_000,
    "\n\n\x0b",
    "a\u0301" * 500,
    "../../../etc/passwd",
    "..",
    "/abs",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", DRAWN, ids=range(len(DRAWN)))
def test_film_of_hostile_texts_stays_in_its_folder(tmp_path, text):
    (tmp_path / "screens").mkdir()
    for i in range(7):
        Image.new("RGB", (20, 10), (40 * i, 90, 200)).save(tmp_path / f"screens/{i}.png")
    step = replace(
        EPISODES[1].steps[0], point=[-5e6, 1e7], predicted=Action("TEXT", text, {"text": text, "point": text})
    )
    film = write_film(tmp_path, 1, replace(EPISODES[1], steps=(step,), instruction=text, task_id=text))
    assert film.resolve().parent == tmp_path / "films" and len(film.name) < 80
    with Image.open(film) as opened:
        assert opened.n_frames == 2


def test_names_in_the_terminal_move_no_cursor(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    moves = "\x1b[2J\x1b]8;;http://x\x07\u202e[bold]x[/bold]"
    steps = [make_step(f"t{i}", 0, "CLICK", "TEXT", application=f"{moves}{i}", group=f"{moves}{i}") for i in range(2)]
    verdicts = judge(steps)
    print_summary(compute_metrics(verdicts, mode="own", n_resamples=20))
    print_comparison(compare_runs(verdicts, verdicts, names=(moves, moves), n_resamples=20))
    episodes = [
        replace(episode, application=f"{moves}{i}", group=moves, reason=moves) for i, episode in enumerate(EPISODES)
    ]
    metrics = compute_live_metrics(episodes, n_resamples=20)
    print_live_summary({**metrics, "agreement": None})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and "\u202e" not in printed
    assert "[bold]x[/bold]" in printed
