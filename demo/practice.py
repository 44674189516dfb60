"""Practice tasks: generated goals that spell out their own steps, in the agent's format. Knows no demo goal or answer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sft.actions import Action
from sft.memory import EMPTY_MEMORY, Answer, Memory, update
from sft.prompts import AgentConfig, Message, build_prompt, format_answer

VERBS = {
    "CLICK": ("click {target}", "press {target}", "open {target}", "choose {target}", "go to {target}", "use {target}"),
    "TEXT": ("type {text} into {target}", "fill {target} with {text}", "enter {text} as {target}"),
    "SCROLL": ("scroll {target} {direction}", "move {direction} in {target}"),
    "ZOOM": ("zoom {direction} on {target}", "zoom {target} {direction}"),
    "SEGMENT": ("draw {target}", "measure with {target}", "mark a {target} on the image"),
}
WEIGHTS = {"CLICK": 9, "TEXT": 4, "SCROLL": 2, "ZOOM": 2, "SEGMENT": 2}
DIRECTIONS = {"SCROLL": ("up", "down", "left", "right"), "ZOOM": ("in", "out")}
EFFECTS = {
    "CLICK": "{target} open",
    "TEXT": "{target} filled",
    "SCROLL": "{target} moved {direction}",
    "ZOOM": "{target} zoomed {direction}",
    "SEGMENT": "{target} drawn",
}
PLAN_VERBS = ("open", "set", "find", "check", "prepare", "show", "add", "review", "change", "read")
OPENINGS = ("", "Please ", "Now ", "I need this: ", "Task: ", "Can you ", "For the report, ")
JOINTS = (", then ", " and ", "; ", ", after that ", ", ")
SYLLABLES = "ba be bo ca co da de di fa fo ga ge ha ka ki la le lo ma mi mo na ne no pa ra re ri sa so ta te to va vi".split()


@dataclass(frozen=True)
class PracticeTask:
    """A goal and its right answers, one a step; each answer carries the memory after its step."""

    instruction: str
    answers: tuple[Answer, ...]


def generate_task(rng: random.Random, names: Sequence[str]) -> PracticeTask:
    """Make up a goal of 2 to 4 plan items whose text names every action in order.

    `names` are labels to act on (elements of the training screens); about half of all labels are made-up words, so that
    they can only be copied, not remembered.
    """
    plan: dict[str, list[Action]] = {}
    while len(plan) < rng.randint(2, 4):
        item = f"{rng.choice(PLAN_VERBS)} {_make_word(rng) if rng.random() < 0.5 else _pick_name(rng, names).lower()}"
        plan[item] = [_make_action(rng, names) for _ in range(rng.randint(1, 3))]
    return PracticeTask(_write_goal(rng, plan), tuple(_write_answers(plan)))


def build_step(
    rng: random.Random, task: PracticeTask, agent: AgentConfig, step: int | None = None
) -> tuple[list[Message], str]:
    """Return prompt and answer text of one step of the task (a random one by default), memory written by the gold."""
    step = rng.randrange(len(task.answers)) if step is None else step
    memory: Memory = EMPTY_MEMORY
    for answer in task.answers[:step]:
        memory = update(memory, answer, agent.memory_writer, agent.memory_budget_chars)
    return build_prompt(task.instruction, memory, agent), format_answer(task.answers[step], agent)


def _make_action(rng: random.Random, names: Sequence[str]) -> Action:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    target = _pick_name(rng, names) if rng.random() < 0.5 else _make_label(rng)
    if kind == "TEXT":
        return Action(kind, target, {"text": _make_label(rng) if rng.random() < 0.7 else _pick_name(rng, names)})
    if kind in DIRECTIONS:
        return Action(kind, target, {"direction": rng.choice(DIRECTIONS[kind])})
    return Action(kind, target)


def _write_goal(rng: random.Random, plan: dict[str, list[Action]]) -> str:
    quote = rng.choice(("", "", '"', "'"))
    items = []
    for item, actions in plan.items():
        clauses = [rng.choice(VERBS[a.kind]).format(**_quoted(a, quote)) for a in actions]
        text = clauses[0]
        for clause in clauses[1:]:
            text += rng.choice(JOINTS) + clause
        items.append((item, text))
    style = rng.randrange(4)
    if style == 0:
        return rng.choice(OPENINGS) + " ".join(f"{item}: {text}." for item, text in items)
    if style == 1:
        return rng.choice(OPENINGS) + "; ".join(f"{item} ({text})" for item, text in items) + "."
    if style == 2:
        return " ".join(f"{i}. {item}: {text}." for i, (item, text) in enumerate(items, start=1))
    return rng.choice(OPENINGS) + ". ".join(f"to {item}, {text}" for item, text in items) + "."


def _quoted(action: Action, quote: str) -> dict[str, str]:
    quoted = {"target": f"{quote}{action.target}{quote}", **{k: str(v) for k, v in action.arguments.items()}}
    if "text" in quoted:
        quoted["text"] = f"{quote}{quoted['text']}{quote}"
    return quoted


def _write_answers(plan: dict[str, list[Action]]) -> list[Answer]:
    answers: list[Answer] = []
    done: list[str] = []
    for item, actions in plan.items():
        for number, action in enumerate(actions, start=1):
            if number == len(actions):
                done.append(item)
            observation = EFFECTS[action.kind].format(target=action.target, **action.arguments)
            answers.append(_answer(action, observation, done, [name for name in plan if name not in done]))
    return [*answers, _answer(Action("COMPLETE", "task"), "goal reached", done, [])]


def _answer(action: Action, observation: str, done: Sequence[str], remaining: Sequence[str]) -> Answer:
    short_term = {"last_action": action.kind, "last_target": action.target, "last_observation": observation}
    long_term = {"completed_subtasks": list(done), "remaining_subtasks": list(remaining)}
    return Answer(action, short_term, long_term)


def _pick_name(rng: random.Random, names: Sequence[str]) -> str:
    return rng.choice(names) if names else _make_label(rng)


def _make_label(rng: random.Random) -> str:
    """Make up what a label or an entry may look like: words, a person's name, a code, a date, a number."""
    kind = rng.randrange(5)
    if kind == 0:
        return " ".join(_make_word(rng).capitalize() for _ in range(rng.randint(1, 2)))
    if kind == 1:
        return f"{_make_word(rng)}^{_make_word(rng)}".upper()
    if kind == 2:
        return f"{_make_word(rng).upper()}{rng.choice(('-', '', '_', ' '))}{rng.randint(1, 9999)}"
    if kind == 3:
        return f"{rng.randint(1950, 2025)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    return _make_word(rng)


def _make_word(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
