"""What is an agent: which actions it has, what it is shown, and which limits hold? Knows no text, files or models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sft.actions import DEFAULT_ACTIONS, ActionType, describe_action_type, give_point, read_action_type

PROMPT_VERSION = "2"
# 1: detected elements behind the memory, however many. An adapter is rolled out with the version it was trained with.
PROMPT_VERSIONS = ("1", PROMPT_VERSION)

MemoryWriter = Literal["model", "rule"]
# Above what any model takes; a number beyond, of a forged file, would fill the memory or never end.
_MOST_TOKENS, _MOST_PIXELS = 1_048_576, 40_000_000  # of pixels: the largest screenshot


@dataclass(frozen=True)
class AgentConfig:
    """Everything that shapes prompt and answer; saved beside the adapter as `agent_config.json`.

    `min_pixels` and `max_pixels` bound a screenshot's area in pixels before it becomes image tokens. A prompt longer
    than `max_prompt_tokens` (image tokens counted in) has its memory shortened. Of detected elements the first
    `max_elements` are shown, and of these as many of the first as fit into `max_element_tokens`, so that all steps on
    a screenshot show the same ones. Nothing else is ever cut. With `points`, `actions` holds the argument `point`:
    of every action that takes a target and does not end the task.
    """

    actions: tuple[ActionType, ...] = field(
        default=DEFAULT_ACTIONS, metadata={"help": "The actions an agent can take; docs/data.md has an example."}
    )
    points: bool = field(
        default=False,
        metadata={"help": 'Answers say where the target is: "point":[x,y], the centre of its box in Grounding.'},
    )
    memory_writer: MemoryWriter = field(
        default="model",
        metadata={"help": "Who writes the memory: the model, in its answer, or a rule, from the predicted action."},
    )
    use_short_term: bool = field(default=True, metadata={"help": "Show the short-term memory (and have it written)."})
    use_long_term: bool = field(default=True, metadata={"help": "Show the long-term memory (and have it written)."})
    use_grounding: bool = field(
        default=False,
        metadata={"help": "Show the screen elements of the column Detected_Elements (python -m sft.elements)."},
    )
    max_elements: int = field(
        default=128,
        metadata={
            "help": "Most elements a prompt shows: the first ones of the list.",
            "least": 1,
            "most": 100_000,
            "unit": "elements",
        },
    )
    max_element_tokens: int = field(
        default=2048,
        metadata={
            "help": "Longest list of elements a prompt shows; of a longer one, the last elements are left out.",
            "least": 1,
            "most": _MOST_TOKENS,
            "unit": "tokens",
        },
    )
    memory_budget_chars: int = field(
        default=1200,
        metadata={
            "help": "Longest memory a prompt shows; of a longer one, the oldest entries are dropped.",
            "least": 4,
            "most": 1_000_000,
            "unit": "characters",
        },
    )  # 4: two empty objects
    min_pixels: int = field(
        default=65_536,
        metadata={
            "help": "A screenshot with fewer pixels is enlarged.",
            "least": 1,
            "most": _MOST_PIXELS,
            "unit": "pixels",
        },
    )
    max_pixels: int = field(
        default=1_310_720,
        metadata={
            "help": "A screenshot with more pixels is made smaller; at least min_pixels.",
            "least": 1,
            "most": _MOST_PIXELS,
            "unit": "pixels",
        },
    )
    max_prompt_tokens: int = field(
        default=8192,
        metadata={
            "help": "A longer prompt, image tokens and elements included, has its memory shortened.",
            "least": 1,
            "most": _MOST_TOKENS,
            "unit": "tokens",
        },
    )
    max_answer_tokens: int = field(
        default=512,
        metadata={
            "help": "Longest answer; a recorded one that is longer is refused.",
            "least": 1,
            "most": 65_536,
            "unit": "tokens",
        },
    )
    prompt_version: str = PROMPT_VERSION

    def __post_init__(self) -> None:
        if self.points:
            object.__setattr__(self, "actions", tuple(map(give_point, self.actions)))

    @property
    def writes_memory(self) -> bool:
        """Whether the answers carry memory."""
        return self.memory_writer == "model"


def agent_to_json(agent: AgentConfig) -> dict[str, Any]:
    """Return the content of `agent_config.json`."""
    return {**asdict(agent), "actions": [describe_action_type(a) for a in agent.actions]}


def agent_from_json(fields: Mapping[str, Any]) -> AgentConfig:
    """Rebuild the agent that `agent_to_json` wrote.

    Raises:
        ValueError: the file was written for another prompt version, or holds keys this version does not know.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"found {type(fields).__name__}; expected a JSON object")
    if fields.get("prompt_version") not in PROMPT_VERSIONS:
        raise ValueError(
            f"found prompt_version {fields.get('prompt_version')!r}; expected one of {', '.join(PROMPT_VERSIONS)}: "
            "roll out with the version of this package that trained the adapter"
        )
    try:
        return AgentConfig(**{**fields, "actions": tuple(map(read_action_type, fields["actions"]))})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"found something unreadable ({error}); train again or restore the file") from error
