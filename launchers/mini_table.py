"""What a mini policy can do, as the README.md beside its weights.

  python launchers/mini_table.py --workdir=DIR/decay-20000

`DIR/decay-STEPS` is of launchers/train_mini_policy.py. The README has the loss
over the training, success and turns without variance in each world, and each
suite's accuracy as the weights are disturbed. Parts that are there already
(`DIR/decay-STEPS/table/`) are not measured again.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys
import tempfile

from absl import logging

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from launchers import train_mini_policy
from pivotrl_jax import errors
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import __main__ as envs_command
from pivotrl_jax.envs import worlds
from pivotrl_jax.evaluation import intervals
from pivotrl_jax.evaluation import suites
from pivotrl_jax.evaluation.suites import __main__ as suites_command
from pivotrl_jax.report import tables
from configs import swe

_ROWS = 8  # Of the table of losses, at most.
_TEXT = """\
# The mini policy

A Qwen3 of {parameters:,} parameters, width {hidden}, {layers} layers, in
bfloat16. It has learned to continue episodes of all mini worlds, played by an
agent that is often wrong, and to answer the questions of all suites
(`pivotrl_jax/evaluation/mixture.py`), by `launchers/build_mini_tokenizer.py`
and

    python launchers/train_mini_policy.py {command}

{steps:,} steps at a constant rate and {decay:,} to 0, of {tokens:,} tokens
with loss each. No task of a world comes twice; questions of suites may.

## Loss

Nats a token, by weight (what agents say 1, answers to questions
{answer_weight:g}, repeated context {context_weight:g}): the mean of the steps
up to that one, taken before each step's update.

{losses}
## Worlds

{tasks} held-out tasks at the temperature of evaluation; of the turns of
{tasks} demonstrations, the share whose sampled rewards are all alike, and all
0. By `python launchers/mini_table.py`, as all that follows.

{worlds}
## Suites

{questions} held-out questions each, at the same temperature, as noise of a
growing size (over each array's own spread) is added to the weights.

{suites}"""


def losses(rows: Sequence[dict[str, float]]) -> tables.Table:
  """The means of equal stretches of a training.

  Args:
    rows: of losses.jsonl, from the first on.
  """
  count = min(_ROWS, len(rows))
  ends = [len(rows) * (i + 1) // count for i in range(count)]
  body = []
  for first, end in zip([0, *ends], ends):
    mean = sum(row["loss"] for row in rows[first:end]) / (end - first)
    body.append((f"{rows[end - 1]['step']:,}", f"{mean:.4f}"))
  return ("step", "loss"), body


def world(name: str, policy: pathlib.Path, tasks: int) -> dict[str, float]:
  """`envs.__main__.under` of a world; which runs main in a folder of its own."""
  config = envs_command.config_of(name)
  config.data.trajectories = config.evaluation.tasks = tasks
  config.evaluation.questions = 0
  with tempfile.TemporaryDirectory() as folder:
    return envs_command.under(str(policy), config, pathlib.Path(folder))


def worlds_table(found: dict[str, dict[str, float]], tasks: int):
  """A row a world, with Wilson's interval of its success."""
  body = []
  for name, row in found.items():
    low, high = intervals.wilson(round(row["policy"] * tasks), tasks)
    body.append(
      (
        name,
        f"{100 * row['policy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * row['zero variance']:.0f} %",
        f"{100 * row['all fail']:.0f} %",
      )
    )
  return ("world", "success (95 %)", "zero variance", "all fail"), body


def power(policy_path: pathlib.Path, questions: int) -> dict[str, list[float]]:
  """Suite -> its accuracy at each size of noise."""
  config = swe.get_config()
  policy = policy_lib.load(policy_path, config)
  found = suites_command.power(
    policy,
    policy_lib.engine(policy, config),
    list(suites.SUITES),
    noise=suites_command.NOISE,
    count=questions,
    max_tokens=config.rollout.max_tokens,
    temperature=config.evaluation.temperature,
  )
  return {name: [row[name] for row in found] for name in suites.SUITES}


def write(
  workdir: pathlib.Path,
  measured: dict[str, dict[str, float]],
  accuracies: dict[str, list[float]],
  *,
  tasks: int,
  questions: int,
) -> pathlib.Path:
  """export/README.md of a branch `workdir`, from what was measured."""
  settings = json.loads(
    (workdir / train_mini_policy.SETTINGS).read_text(encoding="utf-8")
  )
  rows = [
    row
    for folder in (workdir.parent, workdir)
    for _, row in records.read_jsonl(folder / train_mini_policy.LOSSES)
    if folder == workdir or row["step"] <= settings["steps"]
  ]
  chosen = train_mini_policy.CHOSEN
  by_noise = [
    {name: values[i] for name, values in accuracies.items()}
    for i in range(len(suites_command.NOISE))
  ]
  text = _TEXT.format(
    **settings,
    command=" ".join(f"--{key}={settings[key]}" for key in chosen),
    losses=tables.markdown(losses(rows)),
    tasks=tasks,
    worlds=tables.markdown(worlds_table(measured, tasks)),
    questions=questions,
    suites=tables.markdown(
      suites_command.power_table(by_noise, suites_command.NOISE, questions)
    ),
  )
  place = workdir / "export" / "README.md"
  records.write_text(place, [text])
  return place


def _kept(file, measure):
  """What `measure` gives, from `file` where it was written before."""
  if file.exists():
    return json.loads(file.read_text(encoding="utf-8"))
  file.parent.mkdir(exist_ok=True)
  found = measure()
  records.write_text(file, [json.dumps(found, indent=2) + "\n"])
  logging.info("%s", file)
  return found


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True, help="DIR/decay-STEPS")
  parser.add_argument("--tasks", type=int, default=200, help="of each world")
  parser.add_argument(
    "--questions", type=int, default=400, help="of each suite"
  )
  options = parser.parse_args(arguments)
  workdir = pathlib.Path(options.workdir).expanduser()
  export, parts = workdir / "export", workdir / "table"
  logging.set_verbosity(logging.INFO)
  try:
    measured = {
      name: _kept(
        parts / f"{name}-{options.tasks}.json",
        lambda name=name: world(name, export, options.tasks),
      )
      for name in worlds.WORLDS
    }
    accuracies = _kept(
      parts / f"suites-{options.questions}.json",
      lambda: power(export, options.questions),
    )
    place = write(
      workdir, measured, accuracies,
      tasks=options.tasks, questions=options.questions,
    )  # fmt: skip
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(place)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
