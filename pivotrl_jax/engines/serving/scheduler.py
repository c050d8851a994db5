"""Continuous batching of rows in front of any `Engine`.

An engine call samples many rows of one `SamplingParams` to their end. So
rows go in slices of a few tokens: after each, finished rows leave and waiting
ones join, and a row that has sampled little waits for none that samples long.
All state lives on the event loop; the engine runs in one thread.

A slice is a function of what its row has so far and of (seed, slice), and it
has the same length whoever else is there: so a row's tokens depend on its own
prompt and seed only. Rows of one `call` go to the engine alone and whole.
"""

import asyncio
from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import itertools
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import seeds
from pivotrl_jax.engines import base


class Full(Exception):
  """No room in the queue; the message says how much there is."""


class Asleep(Exception):
  """No weights are loaded."""


@dataclasses.dataclass(eq=False)
class Row:
  """One completion in the making.

  Attributes:
    prompt: `[P]` ids.
    sampling: its max_tokens are those of the whole row.
    seed: of the row.
    call: rows with the same number are one engine call, alone; None in slices.
    ids, log_probs: sampled so far.
    routes: `Completion.routes` of each part.
    versions: [version, start, end] of the weights of each part.
    finish: "stop", "length" or "abort" once it is done.
    error: what the engine raised on it.
  """

  prompt: np.ndarray
  sampling: base.SamplingParams
  seed: int
  call: int | None = None
  ids: list[int] = dataclasses.field(default_factory=list)
  log_probs: list[float] = dataclasses.field(default_factory=list)
  routes: list[Any] = dataclasses.field(default_factory=list)
  versions: list[list[Any]] = dataclasses.field(default_factory=list)
  finish: str | None = None
  error: BaseException | None = None
  slices: int = 0
  turn: int = 0  # Smaller has waited longer.
  changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

  def end(self, finish: str) -> None:
    """Ends it, if it has not ended."""
    self.finish = self.finish or finish
    self.changed.set()


class Scheduler:
  """Runs rows on an engine; `run` is its life.

  Args:
    engine: samples.
    slice_tokens: tokens of a slice.
    batch_rows: most rows of a slice.
    queue_rows: most rows that wait or run.
  """

  def __init__(
    self,
    engine: base.Engine,
    *,
    slice_tokens: int,
    batch_rows: int,
    queue_rows: int,
  ):
    self.engine = engine
    self.asleep = False
    self._slice_tokens = slice_tokens
    self._batch_rows = batch_rows
    self._queue_rows = queue_rows
    self._rows: list[Row] = []
    self._jobs: list[tuple[Callable[[], Any], asyncio.Future]] = []
    self._wake = asyncio.Event()
    self._turns = itertools.count()
    self._calls = itertools.count()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "engine")

  @property
  def load(self) -> int:
    """Rows that wait or run."""
    return sum(row.finish is None for row in self._rows)

  def submit(self, rows: Sequence[Row], *, whole: bool = False) -> None:
    """Takes rows; `whole`, as one engine call of their own.

    Raises:
      Full: they do not fit into the queue.
      Asleep: there are no weights.
    """
    if self.asleep:
      raise Asleep("the weights are released; expected a hand-over first")
    if self.load + len(rows) > self._queue_rows:
      raise Full(
        f"{self.load} completions wait or run, {len(rows)} more do not"
        f" fit; expected {self._queue_rows} at most"
      )
    call = next(self._calls) if whole else None
    for row in rows:
      row.call, row.turn = call, next(self._turns)
    self._rows.extend(rows)
    self._wake.set()

  async def on_engine(self, job: Callable[[], Any]) -> Any:
    """`job()` in the engine's thread, between two calls of the engine."""
    future = asyncio.get_running_loop().create_future()
    self._jobs.append((job, future))
    self._wake.set()
    return await future

  def abort_all(self) -> None:
    """Ends all rows."""
    for row in self._rows:
      row.end("abort")

  async def run(self) -> None:
    """Serves until it is cancelled: a job, then a batch, in turns."""
    while True:
      await self._wake.wait()
      self._wake.clear()
      while self._jobs or self._rows:
        if self._jobs:
          job, future = self._jobs.pop(0)
          value, error = await self._in_thread(job)
          if future.cancelled():
            continue
          if error is None:
            future.set_result(value)
          else:
            future.set_exception(error)
        await self._batch()

  async def _in_thread(self, job):
    """(value, None) or (None, what it raised)."""
    future = asyncio.get_running_loop().run_in_executor(self._thread, job)
    await asyncio.wait([future])
    error = future.exception()
    return (None, error) if error else (future.result(), None)

  async def _batch(self):
    """One engine call for the rows that waited longest."""
    self._rows = [row for row in self._rows if row.finish is None]
    if not self._rows:
      return
    first = min(self._rows, key=lambda row: row.turn)
    sampling = self._sampling(first)
    batch = [
      row
      for row in self._rows
      if row.call == first.call and self._sampling(row) == sampling
    ]
    if first.call is None:
      batch = sorted(batch, key=lambda row: row.turn)[: self._batch_rows]
    prompts = [
      np.concatenate([row.prompt, np.array(row.ids, np.int32)]) for row in batch
    ]
    draws = [
      seeds.row_seed(row.seed, row.slices) if row.slices else row.seed
      for row in batch
    ]
    found, error = await self._in_thread(
      lambda: self.engine.sample(prompts, sampling, draws)
    )
    if error is not None:
      logging.error("serve: the engine failed", exc_info=error)
    for i, row in enumerate(batch):
      row.turn = next(self._turns)
      if row.finish is not None:
        continue
      if error is not None:
        row.error = error
        row.end("abort")
      else:
        _extend(row, found[i])
      row.changed.set()

  def _sampling(self, row):
    """Of the row's next engine call."""
    if row.call is not None:
      return row.sampling
    return dataclasses.replace(
      row.sampling, max_tokens=self._slice_tokens, goes_on=True
    )


def _extend(row, completion):
  """Adds what was sampled, as far as the row wants it."""
  start = len(row.ids)
  room = row.sampling.max_tokens - start
  row.ids.extend(completion.ids[:room].tolist())
  row.log_probs.extend(completion.log_probs[:room].tolist())
  if completion.routes is not None:
    row.routes.append(completion.routes[:room])
  row.slices += 1
  end = len(row.ids)
  if row.versions and row.versions[-1][0] == completion.version:
    row.versions[-1][2] = end
  else:
    row.versions.append([completion.version, start, end])
  if completion.finish == "stop" and len(completion.ids) <= room:
    row.end("stop")
  elif end == row.sampling.max_tokens:
    row.end("length")
