"""Planning exercises: goals put together from clauses, and the plan they mean. Knows no recorded goal or answer."""

import calendar
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.practice import pick_label
from sft.actions import Action
from sft.agent import AgentConfig
from sft.answers import Answer, format_answer
from sft.memory import Memory
from sft.prompts import Message, build_prompt

CLAUSES = Path(__file__).with_name("plan_clauses.txt")
FIRST = ", first"
ASIDES, LEAD_INS, BODY = "asides", "lead-ins", "body parts"  # sections of texts that stand for no plan item
# What only plans of the workflows hold that are in the test alone: no exercise has items with both of these words.
HELD_OUT = (
    ("add segmentation", " window"),
    ("annotate finding", "set 1x2 layout"),
    ("protect patient", "send images"),
)
AGAIN = {"scroll down": "scroll further"}  # what a plan calls the second of its kind; measurements are "measure again"
PARTS = ("", "", "left", "right", "upper", "lower", "bright", "dark", "large", "small", "half of the", "middle of the")
PRESETS = ("Soft tissue", "Lung", "Liver", "Bone", "Brain", "Angio", "Abdomen", "Spine")
COLOURS = ("Hot Iron", "HSV", "Perfusion", "X Ray", "Red Hot", "S PET", "Rainbow", "Gray", "Siemens", "GE")
MONTHS = calendar.month_name[1:]
FIELDS = ("MRN", "patient name", "description", "accession number")
LOOKUP_FIELDS = ("patient ID", "patient name", "study description", "accession number")
MODALITIES = ("CT", "MR", "US", "OT", "XA", "NM", "PT", "CR")
TELEGRAM_JOINTS = (", ", ", ", "; ", "; ", " / ", " > ", " -> ", " - ", ": ", " | ")
PROSE_JOINTS = (
    *[", "] * 2,
    ", then ",
    " and ",
    "; ",
    ", after that ",
    ", and ",
    *[". "] * 2,
    ". Then ",
    ". After that ",
)
OPENINGS = (*[""] * 4, "Please ", "Can you ", "Could you ", "I want to ", "I would like to ", "Now ", "We need to ")
OUT_OF_ORDER = ("before that, ", "but first ", "to begin with, ")


@dataclass(frozen=True)
class Clause:
    """One part of a goal: the plan items it stands for and how it may be worded. Both may have slots to fill."""

    items: tuple[str, ...]
    wordings: tuple[str, ...]


def load_clauses(path: Path = CLAUSES) -> dict[str, list[Clause]]:
    """Load the clauses of each section; a section whose name ends in `, first` has those that begin a plan."""
    sections: dict[str, list[Clause]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            items, _, wordings = line.partition(": ")
            section.append(Clause(tuple(items.split(" + ")), tuple(wordings.split(" | "))))
    return sections


def is_held_out(plan: Collection[str]) -> bool:
    """Tell whether a plan comes near one of the workflows that only test tasks have."""
    return any(all(any(words in item for item in plan) for words in pair) for pair in HELD_OUT)


class PlanMaker:
    """Makes up goals and the plans they mean without end."""

    def __init__(self, labels: Sequence[str], words: Sequence[str]):
        self.labels, self.words = labels, words
        sections = load_clauses()
        texts = [sections.pop(name)[0].wordings for name in (ASIDES, LEAD_INS, BODY)]
        self._asides, self._lead_ins, self._body_parts = texts
        self.applications = [name for name in sections if not name.endswith(FIRST)]
        self._first = {name: sections[name + FIRST] for name in self.applications}
        self._later = {name: sections[name] for name in self.applications}

    def make(self, rng: random.Random) -> tuple[str, list[str]]:
        """Return a goal and its plan items in order."""
        while True:
            application = rng.choice(self.applications)
            clauses = [rng.choice(self._first[application])]
            clauses += self._draw(rng, self._later[application], rng.choice((1, 2, 2, 3, 3, 4, 4, 5)))
            parts = [self._fill(rng, clause) for clause in clauses]
            plan = _count_again([item for items, _ in parts for item in items])
            if not is_held_out(plan):
                return self._word(rng, [text for _, text in parts]), plan

    def _draw(self, rng: random.Random, clauses: Sequence[Clause], n_clauses: int) -> list[Clause]:
        """Draw clauses; where something is measured or scrolled, the same may be asked for once more."""
        drawn = rng.sample([c for c in clauses if c.items != ("measure again",)], n_clauses)
        if rng.random() < 0.4:  # in the order of the file, which is nearly that of work
            drawn.sort(key=clauses.index)
        again = [c for c in clauses if c.items == ("measure again",)]
        for i, clause in enumerate(drawn):
            if clause.items[0].startswith("measure ") and rng.random() < 0.4:
                drawn.insert(rng.choice((i + 1, i + 1, rng.randint(i + 1, len(drawn)))), rng.choice([*again, clause]))
                break
            if clause.items[0] in AGAIN and rng.random() < 0.3:
                drawn.insert(rng.randint(i + 1, len(drawn)), clause)
                break
        return drawn

    def _word(self, rng: random.Random, texts: list[str]) -> str:
        if rng.random() < 0.3:
            return self._finish(rng, rng.choice(TELEGRAM_JOINTS).join(texts))
        if len(texts) > 2 and rng.random() < 0.15:  # a later part may name what comes earlier
            i = rng.randrange(1, len(texts) - 1)
            texts[i : i + 2] = [texts[i + 1], rng.choice(OUT_OF_ORDER) + texts[i]]
        if rng.random() < 0.25:  # where to begin may be said last
            first, *texts = texts
            ending = rng.choice((" ({})", " ({})", "; {}", ". {}", ": {}")).format(first)
        else:
            ending = ""
        joint = rng.choice(PROSE_JOINTS)
        goal = texts[0]
        for text in texts[1:]:
            goal = _join(goal, joint if rng.random() < 0.6 else rng.choice(PROSE_JOINTS), text)
        goal += ending
        if rng.random() < 0.2:
            aside = rng.choice(self._asides)
            goal = rng.choice((f"{goal}, {aside}", f"{aside}, {goal}"))
        return self._finish(rng, rng.choice(OPENINGS) + goal)

    def _finish(self, rng: random.Random, goal: str) -> str:
        goal = goal[0].upper() + goal[1:] if rng.random() < 0.8 else goal
        if rng.random() < 0.35:
            lead_in = self._fill_text(rng, rng.choice(self._lead_ins))
            goal = lead_in + ("" if lead_in.endswith("?") else rng.choice((".", ".", ":", ","))) + " " + goal
        return goal + rng.choice((".", ".", "", "?"))

    def _fill(self, rng: random.Random, clause: Clause) -> tuple[list[str], str]:
        slots = self._draw_slots(rng)
        return [item.format(**slots) for item in clause.items], rng.choice(clause.wordings).format(**slots)

    def _fill_text(self, rng: random.Random, wording: str) -> str:
        return wording.format(**self._draw_slots(rng))

    def _draw_slots(self, rng: random.Random) -> dict[str, str]:
        """Draw what a wording may name: studies, series and tags as the two programs write them, parts, texts."""
        patient = self._name_patient(rng)
        description = " ".join(self._say(rng) for _ in range(rng.randint(1, 2)))
        day = f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(1996, 2024)}"
        field, field2 = rng.sample(LOOKUP_FIELDS, 2)
        visits = (f"the study of {day}", "the undated study", f'the study "{description}"', f'study "{description}"')
        series = f'series "{" ".join(self._say(rng) for _ in range(rng.randint(1, 3)))}"'
        return {
            "study": f"{rng.choice(('', 'the study with ', 'the study under '))}{self._describe(rng)}",
            "part": self._name_part(rng),
            "part2": self._name_part(rng),
            "n": str(rng.randint(1, 200)),
            "tag": self._name_tag(rng),
            "preset": rng.choice(PRESETS) if rng.random() < 0.6 else self._say(rng),
            "lut": rng.choice(COLOURS) if rng.random() < 0.6 else self._say(rng),
            "patient": patient,
            "entry": f'"{patient} - {rng.choice(("", description, description))}"'.replace(' - "', ' -"'),
            "visit": rng.choice(visits),
            "series": f"{rng.choice(MODALITIES)} series" if rng.random() < 0.4 else series,
            "server": self._say(rng),
            "field": field,
            "field2": field2,
            **{name: self._quote(rng) for name in ("t", "t2", "t3")},
        }

    def _say(self, rng: random.Random) -> str:
        return pick_label(rng, self.words if rng.random() < 0.7 else self.labels)

    def _describe(self, rng: random.Random) -> str:
        fields = rng.sample(FIELDS, rng.choices((1, 2, 3), (6, 2, 1))[0])
        return " and ".join(f"{field} {self._say(rng)}" for field in fields)

    def _name_part(self, rng: random.Random) -> str:
        noun = rng.choice(self._body_parts if rng.random() < 0.6 else self.words)
        return " ".join(("the", *filter(None, (rng.choice(PARTS), noun))))

    def _name_tag(self, rng: random.Random) -> str:
        name = "".join(rng.choice(self.words).capitalize() for _ in range(rng.randint(1, 2)))
        number = f"({rng.choice(('0008', '0010', '0018', '0028'))},{rng.randint(0, 9999):04})"
        return name if rng.random() < 0.3 else f"{name} {number}"

    def _name_patient(self, rng: random.Random) -> str:
        parts = [self._say(rng) for _ in range(rng.choice((1, 2, 2, 2)))]
        return "^".join(parts) + "^" * rng.choice((0, 0, 0, 4))

    def _quote(self, rng: random.Random) -> str:
        text = self._say(rng)
        return f'"{text}"' if rng.random() < 0.75 else text


def _count_again(plan: Sequence[str]) -> list[str]:
    """Name what is asked for a second time as a plan does."""
    counted: list[str] = []
    for item in plan:
        again = AGAIN.get(item, "measure again" if item.startswith("measure ") else item)
        counted.append(again if item in counted else item)
    return counted


def _join(goal: str, joint: str, text: str) -> str:
    """Add a part to a goal; a new sentence begins with a capital, and a question ends the one before."""
    if joint == ". ":
        text = text[0].upper() + text[1:]
        joint = " " if goal.endswith("?") else joint
    return goal + joint + text


def build_planning(rng: random.Random, maker: PlanMaker, agent: AgentConfig) -> list[Message]:
    """Return a prompt without a screenshot and its answer: the right long-term memory, or an answer that carries it.

    Most prompts hold no memory yet. In the others some items are done and the rest is right or another task's.
    """
    goal, plan = maker.make(rng)
    n_done, long_term = 0, {}
    if rng.random() < 0.15:
        n_done = rng.randint(1, len(plan))
        remaining = plan[n_done:] if rng.random() < 0.5 else maker.make(rng)[1]
        long_term = _write_plan(plan[:n_done], remaining)
    question = build_prompt(goal, Memory({}, long_term), agent)[1]["content"][1]["text"]
    right = _write_plan(plan[:n_done], plan[n_done:])
    if rng.random() < 0.75:
        question, answer = f"{question}\nPlan?", json.dumps(right, separators=(",", ":"))
    else:
        answer = format_answer(_begin(plan[n_done:], right), agent)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _begin(remaining: Sequence[str], long_term: Mapping[str, Sequence[str]]) -> Answer:
    """Answer in the agent's format where no screen is seen: what is left to do first stands for the target."""
    action = Action("CLICK", remaining[0]) if remaining else Action("COMPLETE", "task")
    short_term = {"last_action": action.kind, "last_target": action.target, "last_observation": "not seen"}
    return Answer(action, short_term, long_term)


def _write_plan(done: Sequence[str], remaining: Sequence[str]) -> dict[str, list[str]]:
    return {"completed_subtasks": list(done), "remaining_subtasks": list(remaining)}
