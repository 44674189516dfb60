"""Write what the list of keys says of itself: the tables of docs/recipe.md, and recipes/recipe.schema.json.

python -m sft.recipe
"""

import json
from pathlib import Path

from sft.errors import run_command
from sft.recipe.key_reference import GENERATED, build_schema, format_tables

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str]) -> None:
    if argv:
        print(__doc__)
        return
    page = ROOT / "docs/recipe.md"
    head = page.read_text(encoding="utf-8").partition(GENERATED)[0]
    page.write_text(f"{head}{GENERATED}\n\n{format_tables()}", encoding="utf-8")
    schema = json.dumps(build_schema(), indent=2, ensure_ascii=False)
    (ROOT / "recipes/recipe.schema.json").write_text(f"{schema}\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
