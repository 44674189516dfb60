"""Planning exercises: goals put together from clauses, and the plan they mean. Knows no recorded goal or answer."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.practice import JOINTS, OPENINGS, pick_label
from sft.agent import AgentConfig
from sft.memory import Memory
from sft.prompts import Message, build_prompt

CLAUSES = Path(__file__).with_name("plan_clauses.txt")
FIRST = ", first"
# Plans of the workflows that only test tasks have: no exercise may come near them.
HELD_OUT = (
    {"add segmentation", "set Lung window"},
    {"add segmentation", "set Soft tissue window"},
    {"annotate finding", "set 1x2 layout"},
    {"protect patient", "send images"},
)
FIELDS = ("MRN", "patient name", "description", "accession number", "patient ID")
PARTS = ("the", "left", "right", "upper", "lower", "bright", "dark", "large", "small", "half of the")
REASONS = ("for the report", "for the conference", "before the visit", "as a check", "for teaching", "today", "please")
OUT_OF_ORDER = ("before that, ", "but first ", "to begin with, ")


@dataclass(frozen=True)
class Clause:
    """One part of a goal: the plan items it stands for and how it may be worded. `first` begins every plan."""

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


class PlanMaker:
    """Makes up goals and the plans they mean without end."""

    def __init__(self, labels: Sequence[str], words: Sequence[str]):
        self.labels, self.words = labels, words
        sections = load_clauses()
        self.applications = [name for name in sections if not name.endswith(FIRST)]
        self._first = {name: sections[name + FIRST] for name in self.applications}
        self._later = {name: sections[name] for name in self.applications}

    def make(self, rng: random.Random) -> tuple[str, list[str]]:
        """Return a goal and its plan items in order."""
        while True:
            application = rng.choice(self.applications)
            clauses = [rng.choice(self._first[application])]
            clauses += rng.sample(self._later[application], rng.randint(1, 4))
            plan = [item for clause in clauses for item in clause.items]
            if not any(held_out <= set(plan) for held_out in HELD_OUT):
                return self._word(rng, clauses), plan

    def _word(self, rng: random.Random, clauses: Sequence[Clause]) -> str:
        texts = [self._fill(rng, rng.choice(clause.wordings)) for clause in clauses]
        if len(texts) > 2 and rng.random() < 0.15:  # a later part may name what comes earlier
            i = rng.randrange(len(texts) - 1)
            texts[i : i + 2] = [texts[i + 1], rng.choice(OUT_OF_ORDER) + texts[i]]
        if rng.random() < 0.3:
            texts.insert(rng.choice((0, len(texts))), rng.choice(REASONS))
        joint = rng.choice(JOINTS)
        goal = texts[0]
        for text in texts[1:]:
            goal += (joint if rng.random() < 0.7 else rng.choice(JOINTS)) + text
        goal = rng.choice(OPENINGS) + goal + rng.choice((".", "", "?"))
        return goal[0].upper() + goal[1:] if rng.random() < 0.7 else goal

    def _fill(self, rng: random.Random, wording: str) -> str:
        slots: Mapping[str, str] = {
            "study": f"{rng.choice(('', 'the study with ', 'the study under '))}{self._describe(rng)}",
            "x": self._quote(rng, pick_label(rng, self.labels)),
            "n": str(rng.randint(1, 99)),
            "part": self._name_part(rng),
            "part2": self._name_part(rng),
            **{name: self._quote(rng, pick_label(rng, self.words)) for name in ("t", "t2", "t3")},
        }
        return wording.format(**slots)

    def _describe(self, rng: random.Random) -> str:
        fields = rng.sample(FIELDS, rng.choices((1, 2, 3), (6, 2, 1))[0])
        return " and ".join(f"{field} {pick_label(rng, self.words)}" for field in fields)

    def _name_part(self, rng: random.Random) -> str:
        return f"the {rng.choice(PARTS)} {rng.choice(self.words)}"

    def _quote(self, rng: random.Random, text: str) -> str:
        quote = rng.choice(("", '"'))
        return f"{quote}{text}{quote}"


def build_planning(rng: random.Random, maker: PlanMaker, agent: AgentConfig) -> list[Message]:
    """Return a prompt without a screenshot and its answer, the right long-term memory.

    Half of the prompts hold no memory yet. In the others some items are done and the rest is right or another task's.
    """
    goal, plan = maker.make(rng)
    n_done, long_term = 0, {}
    if rng.random() < 0.5:
        n_done = rng.randint(1, len(plan))
        remaining = plan[n_done:] if rng.random() < 0.5 else maker.make(rng)[1]
        long_term = _write_plan(plan[:n_done], remaining)
    question = build_prompt(goal, Memory({}, long_term), agent)[1]["content"][1]["text"]
    answer = json.dumps(_write_plan(plan[:n_done], plan[n_done:]), separators=(",", ":"))
    return [{"role": "user", "content": f"{question}\nPlan?"}, {"role": "assistant", "content": answer}]


def _write_plan(done: Sequence[str], remaining: Sequence[str]) -> dict[str, list[str]]:
    return {"completed_subtasks": list(done), "remaining_subtasks": list(remaining)}
