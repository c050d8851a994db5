"""An SGLang plugin: deterministic inference with torch_native on a CPU.

SGLang offers it for GPU attention backends only. On a CPU in float32 the
matrix products are batch-invariant enough for tests, so the mode is allowed
and its CUDA kernels are left out.
"""

import functools

_MAKERS = (
    "empty", "zeros", "ones", "tensor", "full", "arange", "empty_like",
    "zeros_like",
)  # fmt: skip


def load() -> None:
  """Called by SGLang in each of its processes."""
  from sglang.srt import batch_invariant_ops
  from sglang.srt.arg_groups import choices
  from sglang.srt.mem_cache.pool_host import common
  import torch

  choices.add_deterministic_attention_backend_choices(["torch_native"])
  choices.RADIX_SUPPORTED_DETERMINISTIC_ATTENTION_BACKEND.append("torch_native")
  batch_invariant_ops.enable_batch_invariant_mode = lambda *_, **__: None
  if torch.cuda.is_available():
    return
  # A torch without CUDA has no pinned memory.
  for name in _MAKERS:
    setattr(torch, name, _unpinned(getattr(torch, name)))
  torch.Tensor.pin_memory = lambda self, *_, **__: self
  common._cuda_host_register = lambda *_, **__: None


def _unpinned(make):
  @functools.wraps(make)
  def wrapped(*args, **knobs):
    knobs.pop("pin_memory", None)
    return make(*args, **knobs)

  return wrapped
