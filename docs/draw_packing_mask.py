"""Draw docs/packing_mask.png from the mask the trainer uses: python docs/draw_packing_mask.py"""

from pathlib import Path

import matplotlib
import numpy as np
import torch

from sft.batches.collator import build_dense_mask
from sft.batches.packing import IGNORED_LABEL, TokenSequence, pack_sequences

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

SYSTEM, IMAGE, GOAL, ANSWER = 3, 6, 3, 3


def build_step(goal: int, image: int) -> TokenSequence:
    prompt = [*range(SYSTEM), *[90] * IMAGE, *[100 + 10 * goal + i for i in range(GOAL)]]
    answer = [1000 + i for i in range(ANSWER)]
    ids = np.array(prompt + answer)
    labels = np.array([IGNORED_LABEL] * len(prompt) + answer)
    return TokenSequence(
        ids=ids,
        labels=labels,
        types=(ids == 90).astype(int),
        weights=np.ones(len(ids)),
        positions=np.tile(np.arange(len(ids)), (3, 1)),
        n_prompt=len(prompt),
        image_key=image,
    )


def main() -> None:
    packed = pack_sequences([build_step(0, 1), build_step(1, 1), build_step(2, 0)])
    mask = build_dense_mask(torch.from_numpy(packed.subtree_end)[None], torch.float32)[0, 0].numpy() == 0
    trained = packed.labels != IGNORED_LABEL
    kinds = np.where(trained, 3, np.where(packed.types == 1, 1, np.where(packed.ids < SYSTEM, 0, 2)))
    colours = np.array(["#8a94a6", "#3b82c4", "#e0a030", "#3d9a5b"])
    picture = np.ones((*mask.shape, 3))
    for q in range(len(mask)):
        for k in np.flatnonzero(mask[q]):
            picture[q, k] = matplotlib.colors.to_rgb(colours[kinds[k]])
    figure, axis = plt.subplots(figsize=(6.4, 6.0), layout="constrained")
    axis.imshow(picture)
    axis.set_xticks(np.arange(-0.5, len(mask)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(mask)), minor=True)
    axis.grid(which="minor", color="#e6e6e6", linewidth=0.6)
    axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    names = ("system message", "screenshot", "goal and memory", "answer (trained)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    axis.legend(handles, names, loc="upper right", frameon=False)
    axis.set(
        xlabel="token that is seen", ylabel="token that looks", title="Three steps on two screenshots in one sequence"
    )
    figure.savefig(Path(__file__).with_name("packing_mask.png"), dpi=120)


if __name__ == "__main__":
    main()
