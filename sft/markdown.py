"""How does text that data, models and folders bring stand in a Markdown file as text, and as nothing else?"""

import json
import re
from typing import Any

from sft.errors import as_printable


def as_markdown_text(value: Any) -> str:
    """Return a value on one line that no Markdown reader takes for a mark: no link, image, HTML, cell, fence or maths.

    Names keep their underscores, which mean nothing within a word.
    """
    text = as_printable(" ".join(str(value).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    return re.sub(r"(?i)(?<=www)(?=\.)|(?=://)", r"\\", text)  # or addresses would become links on their own


def as_code_block(language: str, text: str) -> str:
    """Return a fenced block that no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def as_python_text(value: str) -> str:
    """Return a Python literal on one line, in which nothing is hidden."""
    return json.dumps(value, ensure_ascii=not value.isprintable())
