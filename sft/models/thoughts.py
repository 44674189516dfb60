"""Chat templates whose prompt opens a thought: the answer is taught and asked for behind an empty one."""

import re

from sft.json_text import find_open_thought


def close_thought(template: str, generation_prompt: str) -> str:
    """Return a chat template whose prompts leave no thought open, or the template itself where they do not.

    The templates of thinking variants (Qwen3-VL-Thinking, Qwen3.5) end the prompt with `<think>`: the answer would be
    taught as a thought. The closed one ends it as Qwen writes a turn without thought: `<think>`, an empty line,
    `</think>`, an empty line. It is saved with the processor, so that a server which is given it asks alike.

    `generation_prompt` is a prompt that the template writes, with `add_generation_prompt`.
    """
    opened = find_open_thought(generation_prompt)
    if opened is None:
        return template
    line_end = "" if generation_prompt.endswith("\n") else "\\n"
    closing = f"{line_end}\\n{_name_closing(opened)}\\n\\n"
    # Jinja drops one line break at the end of a template; with more behind it that one would be written
    return template.removesuffix("\n") + "{% if add_generation_prompt %}{{ '" + closing + "' }}{% endif %}"


def _name_closing(opening: str) -> str:
    """Return the tag that closes what this one opens."""
    tag = re.sub(r"^(<\w+)\s.*>$", r"\1>", opening, flags=re.DOTALL)
    if tag.startswith("<|"):
        return re.sub(r"begin|start", "end", tag, flags=re.IGNORECASE)
    return f"{tag[0]}/{tag[1:]}"
