"""Launches stand-ins: what `launch.py` does once a sweep is planned."""

import json
import pathlib
import sys

from absl import app
from absl import flags

from launchers import launch
from launchers.runs import root as root_lib
from pivotrl_jax import errors
from pivotrl_jax import workdir
from tests.launchers import stand_in

_RUNS = flags.DEFINE_string("runs", None, "JSON: name -> overrides.")


def jobs(root, runs):
  """A run a name; all take over one shared import."""
  shared = "shared/import-0"

  def job(name, overrides, stages, needs, arm):
    overrides = {"seed": 0} | overrides
    command = [
        sys.executable, "-m", "tests.launchers.stand_in",
        f"--workdir={root / name}", f"--stages={','.join(stages)}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]  # fmt: skip
    return root_lib.Job(
      name=name, arm=arm, seed=overrides["seed"], config="", needs=needs,
      overrides=overrides, command=tuple(command), stages=stages,
    )  # fmt: skip

  return [job(shared, {}, ("import",), (), "")] + [
    job(name, overrides, stand_in.STAGES, (shared,), "arm")
    for name, overrides in runs.items()
  ]


def main(_):
  root = pathlib.Path(flags.FLAGS.root)

  def is_done(job):
    return set(job.stages) <= set(workdir.finished(root / job.name))

  try:
    launch.carry_out(root, jobs(root, json.loads(_RUNS.value)), is_done)
  except errors.InputError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(main)
