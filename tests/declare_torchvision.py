"""Declare nms and qnms for torchvision, whose wheel does not load without them beside a CPU build of torch.

scripts/test_vllm.sh puts this module into the test environment of vLLM, as a `.pth` file imports it at start-up.
"""

import sys
from importlib.abc import MetaPathFinder


class Declare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.torchvision_operators = torch.library.Library("torchvision", "DEF")  # declared as long as it is held
            for operator in ("nms", "qnms"):
                torch.torchvision_operators.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )


sys.meta_path.insert(0, Declare())
