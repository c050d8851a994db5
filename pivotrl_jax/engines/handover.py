"""Weights on their way to servers: written once, and known to have arrived.

What a server says of its weights can be wrong: an update with a tensor left
out is a success, an old version string may stay. So the server and the
trainer's own sampler answer one fixed prompt greedily, and their log-probs
are compared.
"""

import pathlib
import re
from typing import Any

import numpy as np

from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3
from pivotrl_jax.workdir import remove

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}
GREEDY = base.SamplingParams(max_tokens=8, stop_ids=(), temperature=0.0)


def prompt(vocab_size: int) -> np.ndarray:
  """`[48]` ids that make no text, so that a policy is sure of nothing."""
  return ((37 * np.arange(48) + 11) % vocab_size).astype(np.int32)


class Writer:
  """Writes weights to a folder, and answers the fixed prompt with them.

  Args:
    folder: for weights; one subfolder a version, the last one is kept.
    config: shape of the policy.
    hf_config: the fields of its config.json.
    tokenizer: directory with its tokenizer.
    dtype: of the written tensors, and of the activations.
    attention: what computes it, one of `attention.BODIES`.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    config: qwen3.Config,
    hf_config: dict[str, Any],
    tokenizer: pathlib.Path,
    dtype: str,
    attention: str,
  ):
    self._folder = folder
    self._hf_config, self._tokenizer = hf_config, tokenizer
    self._dtype = dtype
    self._sampler = jax_sampler.JaxSampler(
      config, dtype=np.dtype(dtype), attention=attention
    )
    self._prompt = prompt(config.vocab_size)

  def write(self, weights: Any, version: str) -> pathlib.Path:
    """The directory, written under a temporary name and renamed."""
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder.absolute() / re.sub(r"\W+", "-", version)
    hf.save(
      path,
      weights,
      self._hf_config,
      self._tokenizer,
      dtype=self._dtype,
    )
    for other in self._folder.iterdir():
      if other.name != path.name:
        remove(other)
    return path

  def answer(self, weights: Any, version: str) -> base.Completion:
    """What the trainer's policy answers to the fixed prompt."""
    self._sampler.load(weights, version)
    (completion,) = self._sampler.sample([self._prompt], GREEDY, [0])
    return completion


def gap(got: base.Completion, want: base.Completion) -> float:
  """Largest difference of log-probs, up to the first tie decided otherwise.

  Where two tokens are as likely, rounding decides which is taken: the
  log-probs there still agree, what follows has another past.
  """
  apart = np.flatnonzero(got.ids != want.ids)
  end = apart[0] + 1 if len(apart) else len(want.ids)
  return float(np.abs(got.log_probs[:end] - want.log_probs[:end]).max())


def same(one: base.Completion, other: base.Completion) -> bool:
  """Whether two answers are equal to the bit."""
  return np.array_equal(one.ids, other.ids) and np.array_equal(
    one.log_probs, other.log_probs
  )
