"""One engine over all devices of all processes: each samples its share.

Shares are cut by device, not by process: what a row is computed with, and so
its rounding, is the same for any number of processes on as many devices.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
from typing import Any

import jax
import numpy as np

from pivotrl_jax import hosts
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base


def is_on(config: Any) -> bool:
  """Whether a run's rows are sampled by more than the engine at hand."""
  if config.engine.name == "sglang":
    return hosts.count() > 1
  return config.train.parallel != "jit" and jax.device_count() > 1


class Spread:
  """An `engines.base.Engine` of others; all processes call it alike.

  Args:
    engines: of this process, one for each of `devices`, or for the first of
      them; none where others sample in its stead.
  """

  def __init__(self, engines: Sequence[base.Engine]):
    self._engines = engines
    self._share, self._count = shares(len(engines))
    self.version = ""
    self.stats = base.Counts()

  def load(self, weights: Any, version: str) -> None:
    """See `engines.base.Engine`."""
    own = hosts.copies(weights, devices())
    hosts.agreed(lambda: load(self._engines, own, version))
    self.version = version

  def prepare(
    self,
    lengths: Sequence[int],
    sampling: base.SamplingParams,
    *,
    prompts: int,
    rows: int,
    longest: int = 0,
  ) -> None:
    """See `engines.base.Engine`."""
    own = min(prompts, -(-prompts // self._count) + 1)  # Cut within a prompt.

    def ready(engine):
      engine.prepare(
        lengths, sampling, prompts=own, rows=rows, longest=longest
      )

    each(ready, self._engines)

  def sample(
    self,
    prompts: Sequence[np.ndarray],
    sampling: base.SamplingParams,
    seeds: Sequence[int],
  ) -> list[base.Completion]:
    """See `engines.base.Engine`. What shares a beginning stays together."""
    order = trees.order(prompts)
    parts = np.array_split(order.rows, self._count)

    def sampled(engine, rows):
      if not len(rows):
        return [], base.Counts()
      found = engine.sample(
        [prompts[i] for i in rows], sampling, [seeds[i] for i in rows]
      )
      return found, base.counted(engine.stats)

    found = hosts.agreed(
      lambda: each(sampled, self._engines, parts[self._share])
    )
    out: list[base.Completion | None] = [None] * len(prompts)
    self.stats = base.Counts()
    told = hosts.gathered(
      [[list(map(_packed, of)), counts.row()] for of, counts in found]
    )
    told = [share for of_process in told for share in of_process]
    for rows, (completions, counts) in zip(parts, told, strict=True):
      for row, completion in zip(rows, completions, strict=True):
        out[row] = base.Completion(*completion)
      self.stats += base.Counts(*counts)
    self.stats.trie_tokens = order.tokens()  # Of the whole call.
    return out

  def release(self) -> None:
    """See `sglang.SGLang`."""
    for engine in self._engines:
      engine.release()


def devices() -> list[jax.Device]:
  """Where this process's engines are, one a device.

  CPU devices share the cores: there all are on the first, so that a program
  is compiled once.
  """
  found = jax.local_devices()
  return found[:1] * len(found) if found[0].platform == "cpu" else found


def load(
  engines: Sequence[base.Engine], copies: Sequence[Any], version: str
) -> None:
  """Gives engines their weights: the copies of `devices`."""
  for engine, own in zip(engines, copies, strict=False):
    engine.load(own, version)


def shares(own: int) -> tuple[slice, int]:
  """Which shares are this process's, of how many, where it has `own`."""
  counts = hosts.gathered(own)
  first = sum(counts[: hosts.index()])
  return slice(first, first + own), sum(counts)


def each(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
  """`function` on each of some rows, k-th on the k-th device, at once."""

  def on(device, *row):
    with jax.default_device(device):
      return function(*row)

  rows = list(zip(*columns, strict=False))
  if len(rows) < 2:  # On the default device, the first.
    return [function(*row) for row in rows]
  with concurrent.futures.ThreadPoolExecutor(len(rows)) as threads:
    jobs = [
      threads.submit(on, device, *row)
      for device, row in zip(devices(), rows, strict=False)
    ]
    return [job.result() for job in jobs]


def _packed(c):
  return [c.ids, c.log_probs, c.finish, c.version, c.cached, c.routes]
