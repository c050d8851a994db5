"""Success of the checkpoints that a sweep's runs kept: points of Figure 1.

  python launchers/curve.py ROOT

Each run of ROOT that is done and kept all of its checkpoints, two or more, is
played on its own held-out tasks with each, `WORKDIR/curve/STEP.jsonl`: rows as
in evals.jsonl, whose policy is `step N`. What is there is not played again.
`launchers/tables.py` draws it.
"""

from collections.abc import Sequence
import json
import pathlib
import sys

from absl import app
from absl import logging

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launchers import tables
from launchers.runs import root as root_lib
from pivotrl_jax import errors
from pivotrl_jax import main as main_lib
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.evaluation import evaluate
from pivotrl_jax.models import lora
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import loop
from configs import common


def play(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Plays what is missing of a run's curve.

  Args:
    workdir: of the run.

  Returns:
    The files written.

  Raises:
    InputError: a checkpoint is damaged, or its config of another version.
  """
  steps = checkpoints.steps_of(workdir / checkpoints.FOLDER)
  file_of = {n: workdir / tables.CURVE / f"{n}.jsonl" for n in steps}
  missing = [n for n in steps if not file_of[n].exists()]
  if len(steps) < 2 or not missing:
    return []
  config = _config(workdir / "config.json")
  given = config.train
  if given.steps > given.save_every * given.keep_checkpoints:
    return []  # The first are gone.
  policy = policy_lib.starting(config, workdir)
  state, policy, base = loop.start(config, policy, loop.optimizer(config))
  engine = policy_lib.engine(policy, config)
  evaluate.prepare(config, policy, engine)
  for step in missing:
    place = workdir / checkpoints.FOLDER / str(step)
    _, now = checkpoints.restore(place, state)
    engine.load(lora.merge(base, now.params), f"step {step}")
    rows = [
      {"policy": f"step {step}"} | row
      for seed in range(config.evaluation.seeds)
      for row in evaluate.in_world(config, policy, engine, seed)
    ]
    file_of[step].parent.mkdir(exist_ok=True)
    records.write_jsonl(file_of[step], rows)
    rate = sum(row["success"] for row in rows) / len(rows)
    logging.info("%s: success %.3f", file_of[step], rate)
  return [file_of[n] for n in missing]


def _config(file):
  """A run's; a key that came after the run has its default."""
  given = json.loads(file.read_text(encoding="utf-8"))["config"]
  config = common.base(given["domain"], "").lock()
  try:
    config.update(given)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    said = str(error.args[0]).partition(". ")[0]
    raise errors.InputError(
      f"{file}: {said}; expected a config of this version"
    ) from error
  return config


def main(argv: Sequence[str]) -> None:
  main_lib.keep_programs()
  try:
    for run in tables.load(root_lib.given(argv))[0]:
      play(run.path)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
