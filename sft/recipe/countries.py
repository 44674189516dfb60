"""Countries whose carbon intensity is known without a network. Reads codecarbon's table, and nothing else of it."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def list_countries() -> frozenset[str]:
    """Return their ISO 3166 codes of three letters; the package itself, slow to import, is left alone."""
    spec = find_spec("codecarbon")
    assert spec is not None and spec.origin is not None, "codecarbon is a dependency of this package"
    table = Path(spec.origin).parent / "data/private_infra/global_energy_mix.json"
    return frozenset(json.loads(table.read_text(encoding="utf-8")))
