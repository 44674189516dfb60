"""Training curves: the trainer's log history to one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("Loss", (("loss", "training"), ("eval_loss", "validation"))),
    (
        "Own-memory step accuracy on validation tasks",
        (("eval_swa", "action"), ("eval_swa_target", "action and target")),
    ),
)


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss and, where it was rolled out, step-wise accuracy (SWA) against optimiser steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(title, lines) for title, lines in PANELS if any(key in row for row in log_history for key, _ in lines)]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.4), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], panels):
        for key, label in lines:
            points = [(row["step"], row[key]) for row in log_history if key in row]
            if points:
                axis.plot(
                    *zip(*points), label=label, marker="o" if len(points) < 30 else None, markersize=3.5, linewidth=1.6
                )
        axis.set(title=title, xlabel="optimiser step")
        axis.set_ylim(bottom=0, top=1 if "accuracy" in title else None)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
