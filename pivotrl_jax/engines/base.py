"""What every engine is: tokens in, tokens out, and weights taken up."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """How to sample.

  Attributes:
    max_tokens: most tokens of a completion.
    stop_ids: a completion ends with (and includes) the first of these.
    temperature: 0 takes the likeliest token.
    top_p: nucleus mass in (0, 1].
    top_k: 0 keeps the whole vocabulary.
    goes_on: whether prompts come again with what was said to them, so that it
      is worth to keep what was computed of it.
  """

  max_tokens: int
  stop_ids: tuple[int, ...]
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  goes_on: bool = False


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sampled action.

  Attributes:
    ids: `[A]` int32, the stop token included where one came.
    log_probs: `[A]` float32, of each id under the policy at the sampling
      temperature (at 1 where that is 0), before top_p and top_k.
    finish: "stop" or "length".
    version: of the weights it was sampled from; the versions joined by ", "
      where they changed under it.
    cached: tokens of its prompt that a server says it had computed before.
    routes: `[A, L, k]` the experts that each token came from in each sparse
      layer of the policy: those of the token before it; None where the engine
      does not say.
  """

  ids: np.ndarray
  log_probs: np.ndarray
  finish: str
  version: str = ""
  cached: int = 0
  routes: np.ndarray | None = None


class Stats(Protocol):
  """What the last `sample` did, in tokens."""

  prompt_tokens: int  # Sum of the prompts, as separate sequences.
  trie_tokens: int  # Of the prompts' trie, each token once.
  sampled_tokens: int
  computed_tokens: int  # All, padding included where it is known.


@dataclasses.dataclass
class Counts:
  """The `Stats` of several calls together, or of what is not here."""

  prompt_tokens: int = 0
  trie_tokens: int = 0
  sampled_tokens: int = 0
  computed_tokens: int = 0

  def __add__(self, other: "Counts") -> "Counts":
    return Counts(*map(sum, zip(self.row(), other.row(), strict=True)))

  def row(self) -> list[int]:
    """Its values."""
    return list(dataclasses.astuple(self))


def counted(stats: Stats) -> Counts:
  """What an engine's `stats` say of its last call."""
  names = [field.name for field in dataclasses.fields(Counts)]
  return Counts(*(int(getattr(stats, name)) for name in names))


# What sharing prefixes saves, as profiles and steps log it.
TRIE_TOKENS = (
  "trie/tokens_separate", "trie/tokens_least", "trie/tokens_computed",
)  # fmt: skip


def trie_tokens(stats: Stats) -> np.ndarray:
  """`TRIE_TOKENS` of the last `sample`, by an engine's `stats`.

  Prompts and samples: were each row a sequence of its own; with nothing
  twice; and as they were computed, padding included.
  """
  return np.array([
      stats.prompt_tokens + stats.sampled_tokens,
      stats.trie_tokens + stats.sampled_tokens,
      stats.computed_tokens,
  ])  # fmt: skip


class Engine(Protocol):
  """Two verbs. Sampled ids are trained on as sampled.

  Attributes:
    version: of the weights it samples from.
    stats: of the last `sample`.
  """

  version: str
  stats: Stats

  def sample(
    self,
    prompts: Sequence[np.ndarray],
    sampling: SamplingParams,
    seeds: Sequence[int],
  ) -> list[Completion]:
    """One completion a row; row i is drawn from `prompts[i]`, `seeds[i]`.

    A row depends on its own prompt and seed only, but for rounding. What
    prompts begin with alike is computed once, also from call to call.
    """

  def prepare(
    self,
    lengths: Sequence[int],
    sampling: SamplingParams,
    *,
    prompts: int,
    rows: int,
    longest: int = 0,
  ) -> None:
    """Makes ready for calls of `sample`, so that none of them compiles.

    Args:
      lengths: tokens of the longest prompts that share their beginnings; one
        longer than all of these may compile after all.
      sampling: how.
      prompts: most distinct prompts of a call.
      rows: most rows of one prompt.
      longest: most tokens of prompts of which only the calls will tell how
        long they are: what these need is readied when the first comes.
    """

  def load(self, weights: Any, version: str) -> None:
    """Samples from `weights` from now on; what was computed is forgotten."""
