"""From runs to jobs: what several runs would do alike is a job of its own."""

from collections.abc import Sequence
import pathlib
import sys
from typing import Any

from launchers import sweep
from launchers.runs import root as root_lib
from pivotrl_jax import errors
from pivotrl_jax import progress
from pivotrl_jax import stages
from pivotrl_jax import workdir as workdir_lib

# Stages that are done once for all runs with the same lineage. Later ones are
# a run's own: those who sweep over what changes no number (an engine's batch,
# a way to parallelize) want to see each of them at work.
SHARED = ("import", "candidates", "warm_start", "profile", "baseline")


def jobs(
  runs: Sequence[sweep.Run],
  configs: Sequence[Any],
  root: pathlib.Path,
  module: str,
) -> list[root_lib.Job]:
  """The runs in order, each after the shared work that it needs first.

  Args:
    runs: of the sweep.
    configs: the resolved config of each.
    root: the sweep's folder.
    module: what a run is, such as pivotrl_jax.main.
  """
  lineages = [_lineages(config) for config in configs]
  owners: dict[tuple[str, str], list[int]] = {}  # Stage, lineage -> runs.
  for index, found in enumerate(lineages):
    for item in found.items():
      owners.setdefault(item, []).append(index)
  together: dict[tuple[int, ...], list[tuple[str, str]]] = {}
  for item, indices in owners.items():
    if len(indices) > 1:
      together.setdefault(tuple(indices), []).append(item)
  names = {
    indices: f"shared/{items[-1][0]}-{items[-1][1]}"
    for indices, items in together.items()
  }

  def needs(indices):
    return tuple(
      names[others]
      for others in sorted(together, key=len, reverse=True)
      if others != indices and set(indices) <= set(others)
    )

  def job(name, run, config, steps, *, arm, needs):
    command = [sys.executable, "-m", module, f"--workdir={root / name}"]
    command += run.flags() + ([] if arm else [f"--stages={','.join(steps)}"])
    return root_lib.Job(
      name=name, arm=arm, seed=config.seed, config=run.config,
      overrides=run.overrides, command=tuple(command), stages=steps,
      needs=needs,
    )  # fmt: skip

  found = []
  for index, (run, config) in enumerate(zip(runs, configs, strict=True)):
    for indices in sorted(together, key=len, reverse=True):
      if indices[0] == index:
        steps = tuple(stage for stage, _ in together[indices])
        found.append(
          job(names[indices], run, config, steps, arm="", needs=needs(indices))
        )
    found.append(
      job(
        run.name, run, config, stages.default(config),
        arm=run.arm, needs=needs((index,)),
      )
    )  # fmt: skip
  return found


def is_done(config: Any, workdir: pathlib.Path, steps: Sequence[str]) -> bool:
  """Whether the records in `workdir` say that all of `steps` stand done."""
  if not workdir.exists():
    return False
  try:
    with workdir_lib.opened(workdir):
      return all(progress.is_done(config, workdir, step) for step in steps)
  except errors.InputError:
    return False  # What is wrong with it, main says when it is run.


def _lineages(config):
  """Stage -> the hash of all that decides what it makes."""
  return {
    name: workdir_lib.digest(stages.lineage(config, name))
    for name in stages.default(config)
    if name in SHARED
  }
