"""Registers two ops that PyPI's torchvision expects of a CUDA build of torch.

Runs as the interpreter starts, and acts just before torchvision is imported.
"""

import importlib.abc
import sys

_OPS = ("nms", "qnms")


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name != "torchvision":
      return None
    sys.meta_path.remove(self)
    import torch

    # Kept alive: the ops go with it.
    sys.torchvision_ops = torch.library.Library("torchvision", "DEF")
    for op in _OPS:
      sys.torchvision_ops.define(
        f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
      )
    return None


sys.meta_path.insert(0, _BeforeTorchvision())
