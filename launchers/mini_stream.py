"""What the mini policy is trained on: chats as token ids, step after step.

The stream is a function of (seed, step): worker processes make a shard of so
many steps from chats that no other shard has. A step's chats are packed into
one line of a fixed shape; what the world said before (system prompt and tools)
stands in its trie once for all chats of the step that begin alike. Before the
first chat stands a drill in copying, see `repeats`.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import threading

import numpy as np

from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.data import trees
from pivotrl_jax.envs import base
from pivotrl_jax.envs import worlds
from pivotrl_jax.evaluation import mixture

SHARD = 32  # Steps.
_AHEAD = 2  # Shards in the making while one is trained on.
_MISSES = 4  # Chats in a shard that find no room before it is full.
_RUNS = (8, 48)  # Tokens that are said twice, least and most.


@dataclasses.dataclass(frozen=True)
class Weights:
  """Loss weights of a token; those that agents of worlds speak weigh 1.

  Attributes:
    answer: of a token of an answer to a suite's question.
    context: of a token that nobody is to learn but that stood in the chat
      before, as practice in copying; what is new cannot be foretold.
  """

  answer: float = 2.0
  context: float = 0.5


@dataclasses.dataclass(frozen=True)
class Row:
  """A chat of the stream.

  Attributes:
    prompt: `[P]` ids through the first of the first turn, without loss.
    ids: `[A]` those that follow.
    weights: `[A]` float32 loss weight of each.
  """

  prompt: np.ndarray
  ids: np.ndarray
  weights: np.ndarray


def encode(
  tokenizer: tokenizer_lib.Tokenizer,
  chat: mixture.Chat,
  weights: Weights,
  width: int,
) -> Row:
  """A chat as a row of at most `width` tokens with loss: the first ones."""
  ids = render.prompt_ids(tokenizer, chat.messages, chat.tools)
  # A chat begins with the token that every turn begins with, and a prompt
  # ends with the opening of the policy's turn.
  starts = np.flatnonzero(ids == ids[0])
  opening = ids[starts[-1] :]
  ids = ids[: starts[-1]]
  spoken = np.zeros(len(ids), bool)
  for start in starts[:-1]:
    first = start + len(opening)
    if np.array_equal(ids[start:first], opening):
      size = np.argmax(np.isin(ids[first:], tokenizer.stop_ids)) + 1
      spoken[first : first + size] = True
  _, first_seen = np.unique(ids, return_index=True)
  repeated = np.ones(len(ids), bool)
  repeated[first_seen] = False
  said = 1.0 if chat.source in worlds.WORLDS else weights.answer
  loss = np.where(spoken, said, weights.context * repeated)
  head = chat.messages[0].role == "system" or bool(chat.tools)
  end = starts[1] + 1 if head else 1
  part = slice(end, end + width)
  return Row(ids[:end], ids[part], loss[part].astype(np.float32))


def shard(
  path: pathlib.Path,
  seed: int,
  index: int,
  *,
  shape: batches.Shape,
  weights: Weights,
) -> list[list[Row]]:
  """The rows of steps `SHARD * index` and on.

  Args:
    path: a directory with the tokenizer.
    seed: of the mixture.
    index: of the shard.
    shape: of a step's batch, one line; each chat stands in the first step of
      the shard that has room for it.
    weights: of the loss.
  """
  # No step has room for more chats than a line has branches.
  chat_index = index * SHARD * shape.branches
  steps: list[list[Row]] = [[] for _ in range(SHARD)]
  misses = 0
  while misses < _MISSES:
    chat = mixture.chat(chat_index, seed)
    row = encode(_tokenizer(path), chat, weights, shape.width)
    home = next((s for s in steps if _fits([*s, row], shape)), None)
    if home is None:
      misses += 1
    else:
      home.append(row)
    chat_index += 1
  return steps


def repeats(
  path: pathlib.Path, seed: int, index: int, *, shape: batches.Shape
) -> list[list[Row]]:
  """Runs of random tokens, each said twice; the second time has the loss.

  Nothing but copying from the context can foretell them: a small policy finds
  that in some 400 steps, in chats not in thousands.

  Args:
    path, seed, index, shape: as `shard`'s.
  """
  rng = base.generator("repeats", seed, index)
  size = _tokenizer(path).size
  least, most = _RUNS[0], min(_RUNS[1], shape.width // 2)
  steps: list[list[Row]] = [[] for _ in range(SHARD)]
  for rows in steps:
    while True:
      said = rng.integers(size, size=rng.integers(least, most, endpoint=True))
      # What comes first could be anything.
      weights = np.repeat([0.0, 1.0], len(said))
      weights[len(said)] = 0.0
      twice = np.tile(said.astype(np.int32), 2)
      row = Row(twice[:1], twice[1:], weights[1:].astype(np.float32))
      if not _fits([*rows, row], shape):
        break
      rows.append(row)
  return steps


def _fits(rows, shape):
  """Whether rows have room in one line; see `batches.pack`."""
  least = -(-shape.branch // shape.branches)
  if sum(max(len(row.ids), least) for row in rows) > shape.branch:
    return False
  return trees.order([r.prompt for r in rows]).tokens() <= shape.trie


@functools.cache
def _tokenizer(path):
  return tokenizer_lib.load(path)


def pack(rows: list[Row], shape: batches.Shape) -> batches.TrainBatch:
  """The batch of a step."""
  batch, _ = batches.pack(
    batches.Rows(
      prompts=[row.prompt for row in rows],
      actions=[row.ids for row in rows],
      weights=[row.weights for row in rows],
      advantages=np.zeros(len(rows), np.float32),
      sampler_log_probs=[np.zeros(len(row.ids), np.float32) for row in rows],
    ),
    shape,
  )
  return batch


@contextlib.contextmanager
def opened(
  path: pathlib.Path,
  seed: int,
  first: int,
  *,
  shape: batches.Shape,
  weights: Weights,
  drills: int,
) -> Iterator[Iterator[batches.TrainBatch]]:
  """The endless batches of steps `first` and on.

  Args:
    path, seed, shape, weights: as `shard`'s.
    first: steps that were taken before.
    drills: the first so many shards are of `repeats`.
  """
  make = functools.partial(
    _made, path, seed, shape=shape, weights=weights, drills=drills
  )
  # Not forked: the backend of the process that trains has threads.
  with futures.ProcessPoolExecutor(
    1, multiprocessing.get_context("spawn"), initializer=_ready
  ) as pool:
    try:
      yield _batches(pool, make, first, shape)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _made(path, seed, index, *, shape, weights, drills):
  if index < drills:
    return repeats(path, seed, index, shape=shape)
  return shard(path, seed, index, shape=shape, weights=weights)


def _batches(pool, make, first, shape):
  index, skipped = divmod(first, SHARD)
  coming = [pool.submit(make, index + i) for i in range(_AHEAD)]
  while True:
    steps = coming.pop(0).result()[skipped:]
    coming.append(pool.submit(make, index + _AHEAD))
    index, skipped = index + 1, 0
    for rows in steps:
      yield pack(rows, shape)


def _ready():
  """A worker ends with its parent, also with one that was killed."""

  def watch(parent):
    parent.join()
    os._exit(1)

  threading.Thread(
    target=watch, args=(multiprocessing.parent_process(),), daemon=True
  ).start()
