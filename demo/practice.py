"""Practice tasks: generated goals and their answers in the agent's format. Knows no demo goal or answer."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.practice_procedures import PROCEDURES
from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.memory import Memory, lagged
from sft.prompts import Message, build_prompt

CLAUSES = {
    "CLICK": (
        "click {target}",
        "press {target}",
        "open {target}",
        "choose {target}",
        "go to {target}",
        "use {target}",
        "{target}",
    ),
    "TEXT": (
        "type {text} into {target}",
        "fill {target} with {text}",
        "enter {text} as {target}",
        "search {target} {text}",
        "{target} {text}",
        "{target}: {text}",
    ),
    "SCROLL": ("scroll {target} {direction}", "move {direction} in {target}"),
    "ZOOM": ("zoom {direction} on {target}", "zoom {target} {direction}"),
    "SEGMENT": ("draw {target}", "measure with {target}", "mark a {target} on the image"),
}
WEIGHTS = {"CLICK": 9, "TEXT": 4, "SCROLL": 2, "ZOOM": 2, "SEGMENT": 2}
DIRECTIONS = {"SCROLL": ("up", "down", "left", "right"), "ZOOM": ("in", "out")}
OBSERVATIONS = {
    "CLICK": "{target} open",
    "TEXT": "{target} filled",
    "SCROLL": "{target} moved {direction}",
    "ZOOM": "{target} zoomed {direction}",
    "SEGMENT": "{target} drawn",
}
PLAN_VERBS = ("open", "set", "find", "check", "prepare", "show", "add", "review", "change", "read")
NOUNS = ("code", "name", "date", "filter", "note", "word", "value", "label")
OPENINGS = ("", "", "Please ", "Now ", "I need this: ", "Task: ", "Can you ", "For the report, ", "A colleague asks: ")
JOINTS = (", then ", " and ", "; ", ", after that ", ", ", " > ", ". Then ")
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvz" for vowel in "aeio"]

Plan = Mapping[str, Sequence[tuple[Action, str]]]  # plan item -> its actions, each with what the screen shows then


@dataclass(frozen=True)
class PracticeTask:
    """A goal and its right answers, one per step; each answer carries the memory after its step."""

    instruction: str
    answers: tuple[Answer, ...]


def generate_task(rng: random.Random, labels: Sequence[str], max_items: int = 4) -> PracticeTask:
    """Make up a task of up to `max_items` plan items.

    Half of the goals spell every action out, so that all can be copied; half name everyday procedures (save a file,
    sort a table) whose steps must be known. `labels` are what is acted on and typed; about half of all labels are
    made-up words instead, so that they can only be copied, not remembered.
    """
    n_items = rng.randint(1, max_items)
    if rng.random() < 0.5:
        goal, plan = _spell_out(rng, labels, n_items)
    else:
        goal, plan = _ask_for_procedures(rng, labels, n_items)
    return PracticeTask(goal, tuple(_write_answers(plan)))


def generate_task_on(
    rng: random.Random, here: Mapping[str, str], elsewhere: Sequence[str], max_items: int = 4
) -> tuple[PracticeTask, int]:
    """Make up a task of which one step, whose index is returned too, acts on a screen's own element.

    `here` are the elements on the screen, label to kind of action; all other steps act on labels of `elsewhere`. The
    screen thus says which step it is, whatever the memory says.
    """
    plan = _draw_plan(rng, elsewhere, rng.randint(1, max_items))
    places = [(item, i) for item, steps in plan.items() for i in range(len(steps))]
    item, i = rng.choice(places)
    label = rng.choice(sorted(here))
    action = _make_action(rng, elsewhere, here[label], label)
    plan[item][i] = (action, _observe(action))
    return PracticeTask(_word_plan(rng, plan), tuple(_write_answers(plan))), places.index((item, i))


def build_step(
    rng: random.Random,
    task: PracticeTask,
    agent: AgentConfig,
    step: int | None = None,
    memory: Memory | None = None,
) -> tuple[list[Message], str]:
    """Return prompt and answer text of one step: a random one and the right memory, where none is given."""
    step = rng.randrange(len(task.answers)) if step is None else step
    memory = remember(task, step, agent) if memory is None else memory
    return build_prompt(task.instruction, memory, agent), format_answer(task.answers[step], agent)


def remember(task: PracticeTask, step: int, agent: AgentConfig) -> Memory:
    """Return the memory that a step is shown where all steps before it were right."""
    *_, memory = lagged(task.answers[:step], agent.memory_writer, agent.memory_budget_chars)
    return memory


def _ask_for_procedures(rng: random.Random, labels: Sequence[str], n_items: int) -> tuple[str, Plan]:
    quote, joint = rng.choice(("", "", '"')), rng.choice(JOINTS)
    clauses, plan = [], {}
    for procedure in rng.sample(PROCEDURES, n_items):
        slots = {name: pick_label(rng, labels) for name in "xy"}
        quoted = {name: f"{quote}{label}{quote}" for name, label in slots.items()}
        clauses.append(rng.choice(procedure.wordings).format(**quoted))
        plan[procedure.name] = [_fill_step(step, slots) for step in procedure.steps]
    return rng.choice(OPENINGS) + joint.join(clauses) + rng.choice((".", "", "?")), plan


def _fill_step(step: Sequence[str], slots: Mapping[str, str]) -> tuple[Action, str]:
    kind, target, argument, observation = (part.format(**slots) for part in step)
    name = "text" if kind == "TEXT" else "direction"
    return Action(kind, target, {name: argument} if argument else {}), observation


def _spell_out(rng: random.Random, labels: Sequence[str], n_items: int) -> tuple[str, Plan]:
    plan = _draw_plan(rng, labels, n_items)
    return _word_plan(rng, plan), plan


def _draw_plan(rng: random.Random, labels: Sequence[str], n_items: int) -> dict[str, list[tuple[Action, str]]]:
    plan: dict[str, list[tuple[Action, str]]] = {}
    while len(plan) < n_items:
        item = f"{rng.choice(PLAN_VERBS)} {pick_label(rng, labels).lower()}"
        actions = [_make_action(rng, labels) for _ in range(rng.randint(1, 3))]
        plan[item] = [(action, _observe(action)) for action in actions]
    return plan


def _word_plan(rng: random.Random, plan: Plan) -> str:
    quote, nouns = rng.choice(("", "", '"', "'")), rng.sample(NOUNS, len(NOUNS))
    details: list[str] = []
    items = []
    for item, steps in plan.items():
        text = ""
        for action, _ in steps:
            text += (rng.choice(JOINTS[:5]) if text else "") + _write_clause(rng, action, quote, nouns, details)
        items.append((item, text))
    return rng.choice(OPENINGS) + _join_items(rng, items) + "".join(rng.sample(details, len(details)))


def _make_action(
    rng: random.Random, labels: Sequence[str], kind: str | None = None, target: str | None = None
) -> Action:
    kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    target = target or pick_label(rng, labels)
    if kind == "TEXT":
        return Action(kind, target, {"text": pick_label(rng, labels)})
    if kind in DIRECTIONS:
        return Action(kind, target, {"direction": rng.choice(DIRECTIONS[kind])})
    return Action(kind, target)


def _observe(action: Action) -> str:
    return OBSERVATIONS[action.kind].format(target=action.target, **action.arguments)


def _write_clause(rng: random.Random, action: Action, quote: str, nouns: list[str], details: list[str]) -> str:
    """Word one action. What is typed may be named later: then a sentence is added to `details`."""
    slots = {"target": f"{quote}{action.target}{quote}", **{k: str(v) for k, v in action.arguments.items()}}
    if "text" in slots:
        slots["text"] = f"{quote}{slots['text']}{quote}"
        if nouns and rng.random() < 0.4:
            noun = nouns.pop()
            details.append(f" The {noun} is {slots['text']}.")
            slots["text"] = f"the {noun}"
    return rng.choice(CLAUSES[action.kind]).format(**slots)


def _join_items(rng: random.Random, items: Sequence[tuple[str, str]]) -> str:
    style = rng.randrange(4)
    if style == 0:
        return " ".join(f"{item}: {text}." for item, text in items)
    if style == 1:
        return "; ".join(f"{item} ({text})" for item, text in items) + "."
    if style == 2:
        return " ".join(f"{i}. {item}: {text}." for i, (item, text) in enumerate(items, start=1))
    return ". ".join(f"to {item}, {text}" for item, text in items) + "."


def _write_answers(plan: Plan) -> list[Answer]:
    answers: list[Answer] = []
    done: list[str] = []
    for item, steps in plan.items():
        for number, (action, observation) in enumerate(steps, start=1):
            if number == len(steps):
                done.append(item)
            answers.append(_answer(action, observation, done, [name for name in plan if name not in done]))
    return [*answers, _answer(Action("COMPLETE", "task"), "goal reached", done, [])]


def _answer(action: Action, observation: str, done: Sequence[str], remaining: Sequence[str]) -> Answer:
    short_term = {"last_action": action.kind, "last_target": action.target, "last_observation": observation}
    long_term = {"completed_subtasks": list(done), "remaining_subtasks": list(remaining)}
    return Answer(action, short_term, long_term)


def pick_label(rng: random.Random, labels: Sequence[str]) -> str:
    """Take a given label or make up what one may look like: a word, a person's name, a code, a number."""
    kind = rng.randrange(10)
    if kind < 6 and labels:
        return rng.choice(labels)
    if kind < 8:
        return _make_word(rng).capitalize()
    if kind == 8:
        return f"{_make_word(rng)}^{rng.choice(SYLLABLES)}".upper()
    return f"{rng.choice(SYLLABLES).upper()}{rng.choice(('-', '', '_'))}{rng.randint(1, 999)}"


def _make_word(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))
