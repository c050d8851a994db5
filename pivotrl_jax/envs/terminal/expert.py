"""A scripted agent at the terminal, and its mediocre double.

`decide` is right at every turn: look, do it in one of several ways, check,
finish; and it mends what was broken before. `decide_poorly` types what looks
like it, looks at the wrong thing, or finishes too early.
"""

import dataclasses
import json

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.terminal import environment
from pivotrl_jax.envs.terminal import shell
from pivotrl_jax.envs.terminal import tasks

_FIRST = 0.7  # How often the first of several equal commands is taken.
# Stage -> what is thought of it, and what is planned.
_SAID = {
  "look": (
    ("I have not seen the files.", "Nothing seen yet.", "I must look first."),
    ("Look at them.", "See what is there.", "Have a look."),
  ),
  "do": (
    ("I know the files now.", "That is clear.", "I have seen enough."),
    ("Do it.", "Carry it out.", "Do what is asked."),
  ),
  "check": (
    ("It should be done.", "That went through.", "The command ran."),
    ("Check it.", "See if it is right.", "Look at the result."),
  ),
  "finish": (
    ("It is right.", "The result is as asked.", "All is done."),
    ("Finish.", "Nothing is left.", "Stop here."),
  ),
}


@dataclasses.dataclass(frozen=True)
class Move:
  """What to type, at which stage; `finish` types nothing and ends."""

  stage: str
  line: str = ""


def act(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """A right reply."""
  return reply(decide(task, state, rng), rng)


def act_poorly(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """What a mediocre agent might reply here instead."""
  if rng.random() < 0.05:
    return base.say(base.pick(rng, ("I will look.", "It is done.", "OK.")))
  return reply(decide_poorly(task, state, rng), rng)


def reply(move: Move, rng: np.random.Generator) -> types.Action:
  """A move in JSON, in one of several wordings."""
  analysis, plan = (base.pick(rng, said) for said in _SAID[move.stage])
  commands = []
  if move.line:
    command = {"keystrokes": f"{move.line}\n"}
    if rng.random() < 0.25:
      command["duration"] = base.pick(rng, (0.1, 0.5, 1.0))
    commands.append(command)
  fields = {"analysis": analysis, "plan": plan, "commands": commands}
  if move.stage == "finish":
    fields["task_complete"] = True
  elif rng.random() < 0.25:
    fields["task_complete"] = False
  return base.say(json.dumps(fields))


def decide(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> Move:
  """A right move."""
  draft = task.draft
  if state.typed or state.shell.cwd != shell.HOME:
    return Move("look", "cd")
  if state.shell.files == task.goal:
    if any(line in draft.checks for line in state.log[-1:]):
      return Move("finish")
    return Move("check", _one_of(rng, draft.checks))
  for stage in draft.looks:
    if not any(line in stage for line in state.log):
      return Move("look", _one_of(rng, stage))
  for way in [_one_of(rng, draft.ways), *draft.ways]:
    after, _ = shell.run(state.shell, way)
    if after.files == task.goal and after.cwd == shell.HOME:
      return Move("do", way)
  return Move("do", _mend(state.shell.files, task.goal))


def decide_poorly(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> Move:
  """A move that looks right, or a lazy one."""
  draft, chance = task.draft, rng.random()
  if chance < 0.55:
    return Move("do", base.pick(rng, draft.wrong))
  if chance < 0.7:
    return Move("look", base.pick(rng, ("ls", "pwd", "ls -l", "ls ..")))
  if chance < 0.85 or not state.log:
    folder = base.pick(rng, tasks.FOLDERS)
    return Move("look", f"cat {folder}/{base.pick(rng, tasks.STEMS)}.txt")
  return Move("finish")


def _one_of(rng, choices):
  """The first most of the time, else any."""
  return choices[0] if rng.random() < _FIRST else base.pick(rng, choices)


def _mend(files, goal):
  """A line that brings files a few steps nearer to the goal."""
  parts = [
    f"rm -rf {path}"
    for path in sorted(files)
    if path not in goal or (files[path] is None) != (goal[path] is None)
  ]
  parts += [
    f"mkdir -p {path}"
    for path in sorted(goal)
    if goal[path] is None and path not in files
  ]
  if not parts:
    for path in sorted(goal):
      if goal[path] is not None and files.get(path) != goal[path]:
        text = goal[path].replace("\n", "\\n")
        parts.append(f"printf '{text}' > {path}")
  return " && ".join(parts[:2])
