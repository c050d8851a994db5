"""What `train` can do: a module a method, and their table.

A new method is a module that is a `Method`, and a line of `METHODS`.
"""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any, Protocol

from pivotrl_jax.models import lora
from pivotrl_jax.train.methods import e2e
from pivotrl_jax.train.methods import pivotrl
from pivotrl_jax.train.methods import sft

# (state, step index) -> (state, metrics of the step, rows of rollouts.jsonl).
# Where rollouts are sampled, `rollout/turns` among the metrics counts them.
Advance = Callable[
  [Any, int], tuple[Any, dict[str, float], list[dict[str, Any]]]
]


class Method(Protocol):
  """A way to train.

  Attributes:
    READS: `config`, `but` and `inputs` of the stage `train`: see
      `stages.Stage`.
    IDLE: keys and sections without effect, to be named where they were
      changed.
    OPTIMIZERS: of `config.optimizer`.
    SAMPLES: whether it learns from how the rewards of a group differ.
    IN_WORLD: whether it needs a world to play in.
  """

  READS: Mapping[str, tuple[str, ...]]
  IDLE: tuple[str, ...]
  OPTIMIZERS: tuple[str, ...]
  SAMPLES: bool
  IN_WORLD: bool

  def idle(self, config: Any) -> tuple[str, ...]:
    """Keys and sections of `READS` without effect under this config."""

  def build(
    self, config: Any, workdir: pathlib.Path, policy: Any, tx: Any, state: Any,
    base: lora.Base | None,
  ) -> tuple[Advance, Any]:  # fmt: skip
    """What takes a step, and the state laid out for it.

    With a base the state's parameters are adapters. Of the policy's own
    nothing is to be held that no step reads.
    """

  def turns_before(self, workdir: pathlib.Path) -> int:
    """Rollout turns that were sampled before the first step."""


METHODS: dict[str, Method] = {"pivotrl": pivotrl, "sft": sft, "e2e": e2e}
