"""`python -m pivotrl_jax.envs [WORLD...]`: what the worlds are like.

Prints a Markdown table, a row a world, from the expert's episodes: whether it
succeeds, at how many turns another action is as right, how often an exact
match misses such an action, and what the config's verifier takes of right
actions and of a mediocre agent's. `--policy=DIR` plays and profiles a policy
too: its success, and the shares of turns whose samples' rewards are all alike
and all 0. To be run in the checkout, whose `configs/` it reads.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import importlib
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.envs import base
from pivotrl_jax.envs import worlds
from pivotrl_jax.report import tables
from pivotrl_jax.verifiers import verify

_DRAWS = 8  # Actions of the expert, and of the mediocre one, at a turn.
# Worlds that are not the one their domain's config chooses -> what to change.
_CHANGES = {"terminal_calls": {"verifier.name": "terminal_multi_harness"}}


@dataclasses.dataclass
class Turns:
  """Sums over turns of what was drawn there; each a list of shares."""

  several: list[float]
  missed: list[float]
  taken: list[float]
  taken_poor: list[float]


def config_of(name: str) -> Any:
  """The config of a world: its domain's, and what the world wants else."""
  module = importlib.import_module(f"configs.{worlds.WORLDS[name].DOMAIN}")
  config = module.get_config()
  config.world = name
  config.update_from_flattened_dict(_CHANGES.get(name, {}))
  return config


def distinct(name: str, split: str, count: int) -> tuple[int, int]:
  """How many of the first `count` tasks differ, and how many tasks there are.

  The second is from below, at 95 %: of N equally likely tasks `count` are all
  different with a chance of exp(-count^2 / 2N); with d that are not, N is
  about count^2 / 2d.
  """
  env = worlds.WORLDS[name]
  seen = {
    repr(dataclasses.replace(env.make_task(i, split), id=""))
    for i in range(count)
  }
  repeats = count - len(seen)
  return len(seen), int(count**2 / (2 * max(repeats, 3)))


def measure(name: str, config: Any, episodes: int) -> dict[str, float]:
  """Figures of a world from the expert's episodes on its training tasks.

  Args:
    name: a key of `worlds.WORLDS`.
    config: whose verifier compares.
    episodes: to play.

  Returns:
    `success`, `turns` and `longest` (an episode's most turns) of the expert,
    then shares over its turns: `several` (of turns with another right
    action), `missed` (of right actions, by exact match with one of them),
    `taken` (of right actions, by the verifier) and `taken_poor` (of a
    mediocre agent's).
  """
  env = worlds.WORLDS[name]
  score = _scorer(env, config)
  found = Turns([], [], [], [])
  wins, lengths = [], []
  for index in range(episodes):
    task = env.make_task(index, "train")
    state, _ = env.reset(task)
    rng = base.generator("measure", name, index)
    for turn in range(worlds.MAX_TURNS):
      actions = [env.act(task, state, rng) for _ in range(_DRAWS)]
      poor = [env.act_poorly(task, state, rng) for _ in range(_DRAWS)]
      _add(found, actions, poor, score)
      action = worlds.numbered(actions[0], turn)
      state, _ = env.step(task, state, action)
      if state.done:
        break
    wins.append(env.success(task, state))
    lengths.append(turn + 1)
  means = {k: float(np.mean(v)) for k, v in vars(found).items()}
  return {
    "success": float(np.mean(wins)),
    "turns": float(np.mean(lengths)),
    "longest": float(max(lengths)),
    **means,
  }


Score = Callable[[str, types.Action, types.Action], float]


def _scorer(env, config) -> Score:
  def score(verifier, label, action):
    options = config.verifier[verifier].to_dict()
    return verify.verify(
      verifier, label, action, tools=env.TOOLS, config=options, row=env.ROW
    ).reward

  return lambda kind, label, action: score(
    "strict" if kind == "strict" else config.verifier.name, label, action
  )


def _add(found, actions, poor, score):
  """One turn's shares; the first action is the demonstration."""
  label, *others = actions
  exact = [score("strict", label, a) for a in others]
  found.several.append(float(min(exact) < 1))
  found.missed.append(1 - float(np.mean(exact)))
  found.taken.append(float(np.mean([score("", label, a) for a in others])))
  found.taken_poor.append(float(np.mean([score("", label, a) for a in poor])))


def under(policy: str, config: Any, workdir: pathlib.Path) -> dict[str, float]:
  """Success of a policy, and shares of turns that teach it nothing.

  Args:
    policy: a Hugging Face directory.
    config: of the world; how many tasks, turns and samples.
    workdir: a folder that stays empty but for this.
  """
  # What runs a policy loads jax; the rest does without.
  from pivotrl_jax import main as main_lib
  from pivotrl_jax.evaluation import evaluate

  main_lib.keep_programs()
  config.model.path = policy
  main_lib.run(config, workdir, ["import", "candidates", "profile", "baseline"])
  profiles = list(records.read_profiles(workdir / "profiles.jsonl"))
  flat = [p for p in profiles if p.variance == 0]
  rows = [
    row
    for _, row in records.read_jsonl(workdir / evaluate.BASE)
    if row["suite"] == config.domain
  ]
  return {
    "policy": float(np.mean([row["success"] for row in rows])),
    "zero variance": len(flat) / len(profiles),
    "all fail": sum(p.mean == 0 for p in flat) / len(profiles),
  }


def main(arguments: Sequence[str]) -> int:
  parsed = _parser().parse_args(arguments)
  head = [
    "world", "tasks, at least", "expert's success", "turns (most)",
    "several right", "exact match misses", "verifier takes", "of poor ones",
  ]  # fmt: skip
  if parsed.policy:
    head += ["policy's success", "zero variance", "all fail"]
  body = []
  try:
    for name in parsed.worlds or worlds.WORLDS:
      body.append(tuple(_row(name, parsed)))
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(tables.markdown((tuple(head), body)), end="")
  return 0


def _row(name, parsed):
  """A world's cells."""
  if name not in worlds.WORLDS:
    raise errors.InputError(
      f"world {name!r}; expected some of {', '.join(worlds.WORLDS)}"
    )
  config = config_of(name)
  _, tasks = distinct(name, "train", parsed.tasks)
  found = measure(name, config, parsed.episodes)
  yield from (name, f"{tasks:,}", f"{100 * found['success']:.1f} %")
  yield f"{found['turns']:.1f} ({found['longest']:.0f})"
  for key in ("several", "missed", "taken", "taken_poor"):
    yield f"{100 * found[key]:.0f} %"
  if parsed.policy:
    config.data.trajectories = parsed.episodes
    config.evaluation.tasks = parsed.episodes
    config.evaluation.questions = 0
    with tempfile.TemporaryDirectory() as folder:
      shares = under(parsed.policy, config, pathlib.Path(folder))
    for value in shares.values():
      yield f"{100 * value:.1f} %"


def _parser():
  parser = argparse.ArgumentParser(
    prog="python -m pivotrl_jax.envs", description=__doc__
  )
  parser.add_argument("worlds", nargs="*", metavar="WORLD")
  parser.add_argument("--policy", help="a Hugging Face directory to play with")
  parser.add_argument(
    "--episodes", type=int, default=200, help="of the expert and the policy"
  )
  parser.add_argument(
    "--tasks", type=int, default=2000, help="made, to estimate how many"
  )
  return parser


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
