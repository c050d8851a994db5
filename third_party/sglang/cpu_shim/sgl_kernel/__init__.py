"""Stands in for SGLang's kernels, which have no CPU build on PyPI. Tests only.

What torch_native serving needs is here in plain torch; any other kernel is an
error when it is called, not when it is imported.
"""

import torch

__version__ = "0"

_WORD = 0xFFFFFFFF
_library = torch.library.Library("sgl_kernel", "FRAGMENT")
_library.define("init_cpu_threads_env(str cpuids) -> ()")
_library.define(
  "murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor cols) -> Tensor"
)


def __getattr__(name):
  if name.startswith("__"):
    raise AttributeError(name)

  def missing(*args, **knobs):
    raise NotImplementedError(f"sgl_kernel.{name}: no CPU kernel in the shim")

  return missing


@torch.library.impl(
  _library, "init_cpu_threads_env", "CompositeExplicitAutograd"
)
def _init_cpu_threads_env(cpuids):
  torch.set_num_threads(max(1, len(cpuids.split(","))))


def _rotated(x, bits):
  return ((x << bits) | (x >> (32 - bits))) & _WORD


@torch.library.impl(_library, "murmur_hash32_cpu", "CPU")
def _murmur_hash32(seed, positions, cols):
  """MurmurHash3 (32 bits) of seed, position and column: `[rows, columns]`."""
  seed = seed.to(torch.int64)[:, None]
  position = positions.to(torch.int64)[:, None]
  column = cols.to(torch.int64)[None, :]
  found = torch.zeros_like(seed)
  for block in (seed, seed >> 32, position, column):
    block = ((block & _WORD) * 0xCC9E2D51) & _WORD
    block = (_rotated(block, 15) * 0x1B873593) & _WORD
    found = (_rotated(found ^ block, 13) * 5 + 0xE6546B64) & _WORD
  found = found ^ 16  # Bytes that were hashed.
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    found = ((found ^ (found >> shift)) * factor) & _WORD
  return found.to(torch.uint32)
