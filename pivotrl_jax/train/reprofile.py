"""Profiling again with the policy in training (paper, section 6).

What was hard for the frozen policy is not for the trained one: its groups
agree, and teach nothing. So the candidates are profiled anew once it is time,
and the pivots chosen anew by the same rule.

`profiles/N.jsonl` is the profile under the policy of N steps. Which of them
are in force at a step, metrics.jsonl says: a resumed run takes those.
"""

import pathlib
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import hosts
from pivotrl_jax import types
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines import spread
from pivotrl_jax.pivots import profile as profile_lib
from pivotrl_jax.pivots import select

_TURNS, _STD = "profile/turns", "signal/reward_std"
_FIRST, _RECENT = 20, 10  # Steps whose mean std is compared.


def is_on(config: Any) -> bool:
  """Whether a run may profile again."""
  given = config.profile
  return any((given.again_every, given.again_below))


class Reprofile:
  """Says when it is time, and what the pivots are since.

  Args:
    config: the run's, in which `is_on` holds.
    workdir: the run's.
    policy: the starting policy, whose tokenizer and shape count.
  """

  def __init__(self, config: Any, workdir: pathlib.Path, policy: Any):
    self._config, self._workdir, self._policy = config, workdir, policy
    # By candidate, the newest profile of each.
    self._profiles = {
      p.candidate_id: p
      for p in records.read_profiles(workdir / "profiles.jsonl")
    }
    self.means = {name: p.mean for name, p in self._profiles.items()}
    self._stds: list[float] = []
    self._last = 0  # Step of the newest profile.

  def go_on(self, step: int) -> list[types.Pivot] | None:
    """Takes up what a run of `step` steps has found.

    Returns:
      The pivots in force; None: those of pivots.jsonl.
    """
    path = self._workdir / "metrics.jsonl"
    rows = [row for _, row in records.read_jsonl(path) if row["step"] <= step]
    self._stds = [row[_STD] for row in rows]
    made = [row["step"] - 1 for row in rows if _TURNS in row]
    for step in made:
      self._merge(self._file(step))
    self._last = max(made, default=0)
    return self._select() if made else None

  def note(self, scalars: dict[str, float]) -> None:
    """Takes up the scalars of a step."""
    self._stds.append(scalars[_STD])

  def is_due(self, step: int) -> bool:
    """Whether to profile after `step` steps.

    Every `profile.again_every` of them; or where the groups' mean std of the
    last steps is under `profile.again_below` of that of the first, and the
    last profile as many steps ago.
    """
    given = self._config.profile
    if not step:
      return False
    if given.again_every and step % given.again_every == 0:
      return True
    if not given.again_below or step - self._last < _FIRST:
      return False
    if len(self._stds) < _FIRST:
      return False
    first = np.mean(self._stds[:_FIRST])
    return bool(np.mean(self._stds[-_RECENT:]) < given.again_below * first)

  def __call__(
    self, params: Any, step: int
  ) -> tuple[list[types.Pivot] | None, dict[str, float]]:
    """Profiles by the policy of `step` steps.

    Returns:
      The pivots; None where there would be none: the old ones stay. And
      `profile/` scalars.
    """
    version = policy_lib.digest(params)
    path = self._file(step)
    if not hosts.first(lambda: _is_there(path, version)):
      self._sample(params, version, step)
    found = self._merge(path)
    self._last = step
    pivots = self._select()
    if not pivots:
      logging.warning(
        "train: step %d: no candidate is a pivot any more; the old ones stay",
        step + 1,
      )
    logging.info(
      "train: profiled again after %d steps: %d pivots", step, len(pivots)
    )
    means = [p.mean for p in found if p.mean is not None]
    scalars = {
      _TURNS: float(sum(p.group_size for p in found)),
      "profile/pivots": float(len(pivots)),
    }
    return pivots or None, scalars | (
      {"profile/mean": float(np.mean(means))} if means else {}
    )

  def _sample(self, params, version, step):
    # An engine of its own: what one keeps would change the other's rounding.
    engines = policy_lib.engines(self._policy, self._config)
    copies = hosts.copies(params, spread.devices())

    def loaded():
      spread.load(engines, copies, version)
      return engines

    profile_lib.profile_all(
      self._config, self._workdir, self._policy.tokenizer, version, loaded,
      step=step,
    )  # fmt: skip

  def _merge(self, path):
    """Takes the profiles of a file for what is known of their candidates."""
    found = list(records.read_profiles(path))
    self._profiles |= {p.candidate_id: p for p in found}
    return found

  def _select(self) -> list[types.Pivot]:
    return select.by_config(self._config, list(self._profiles.values()))

  def _file(self, step):
    return profile_lib.again(self._workdir, step)


def _is_there(path: pathlib.Path, version: str) -> bool:
  """Whether a profile by these parameters is there; another gives way."""
  path.parent.mkdir(exist_ok=True)
  for file in (path, path.with_name(path.name + ".partial")):
    if file.exists() and _policy_of(file) not in (version, None):
      # Of other parameters, so of another past.
      kept = workdir_lib.free(file.with_name(file.name + ".old"))
      file.rename(kept)
      logging.warning("train: %s: of other parameters; now %s", file, kept.name)
  return path.exists()


def _policy_of(path: pathlib.Path) -> str | None:
  """The policy of a file's first whole row; None where there is none."""
  with open(path, "rb") as lines:
    first = lines.readline()
  if not first.endswith(b"\n"):
    return None
  return records.field(records.decode(first, str(path)), "policy", str, path)
