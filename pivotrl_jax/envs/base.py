"""What a world is, and what all worlds share. No jax here.

A world is a package with three parts: tasks, an environment (the state and
what the tools do to it) and an expert. Its `__init__` is an `Env`.
"""

from collections.abc import Callable
import hashlib
import json
from typing import Any, Protocol

import numpy as np

from pivotrl_jax import seeds
from pivotrl_jax import types

# The base policy and the agent's data are of "train", what is tuned is tuned
# on "validation", and "eval" is only ever reported.
SPLITS = ("train", "validation", "eval")
_KINDS = {"string": str, "integer": int, "number": (int, float)}


class Env(Protocol):
  """A world: a module of pure functions. States carry `done`.

  Attributes:
    DOMAIN: one of `types.DOMAINS`.
    TOOLS: OpenAI function schemas; () where the agent answers in JSON.
    ROW: fields that the verifier wants in a row, such as its harness.
  """

  DOMAIN: str
  TOOLS: tuple[dict[str, Any], ...]
  ROW: dict[str, Any]

  def make_task(self, index: int, split: str) -> Any:
    """The `index`-th task of one of `SPLITS`, which share none."""

  def reset(self, task: Any) -> tuple[Any, tuple[types.Message, ...]]:
    """First state and messages."""

  def step(
    self, task: Any, state: Any, action: types.Action | types.ParseFailure
  ) -> tuple[Any, tuple[types.Message, ...]]:
    """Next state, and what the world answers; no action is an exception."""

  def success(self, task: Any, state: Any) -> bool:
    """The final check."""

  def act(
    self, task: Any, state: Any, rng: np.random.Generator
  ) -> types.Action:
    """A right action: one of several where several are right."""

  def act_poorly(
    self, task: Any, state: Any, rng: np.random.Generator
  ) -> types.Action:
    """What a mediocre agent might do here instead."""


def generator(*parts: int | str) -> np.random.Generator:
  """Draws that are a function of what names them."""
  return np.random.default_rng(seeds.row_seed(*parts))


def check_split(split: str) -> None:
  """ValueError for what is none of `SPLITS`."""
  if split not in SPLITS:
    raise ValueError(f"split {split!r}; expected train or eval, or validation")


def split_of(text: str) -> str:
  """The split of all tasks about `text`: six in eight are "train"."""
  digest = hashlib.blake2b(text.encode(), digest_size=1).digest()[0]
  return {0: "eval", 1: "validation"}.get(digest % 8, "train")


def pick(rng: np.random.Generator, choices) -> Any:
  """One of `choices`, as it is: no numpy scalar."""
  return choices[int(rng.integers(len(choices)))]


def tool(
  name: str,
  description: str,
  required: tuple[str, ...] = (),
  /,
  **properties: str,
) -> dict[str, Any]:
  """A function schema; `properties` are names and JSON types."""
  return {
    "type": "function",
    "function": {
      "name": name,
      "description": description,
      "parameters": {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(required),
      },
    },
  }


def read_arguments(
  call: types.ToolCall, tools: tuple[dict[str, Any], ...]
) -> dict[str, Any] | str:
  """A call's arguments, or what to answer to a call that cannot be."""
  try:
    arguments = json.loads(call.arguments)
  except (ValueError, RecursionError):
    return "Arguments are not JSON."
  functions = {t["function"]["name"]: t["function"] for t in tools}
  if call.name not in functions:
    return "No such tool."
  parameters = functions[call.name]["parameters"]
  kinds = {k: _KINDS[v["type"]] for k, v in parameters["properties"].items()}
  if not isinstance(arguments, dict) or any(
    key not in kinds or not isinstance(value, kinds[key])
    for key, value in arguments.items()
  ):
    return "Bad arguments."
  missing = [key for key in parameters["required"] if key not in arguments]
  return f"Missing {missing[0]}." if missing else arguments


def answer_calls(
  calls: tuple[types.ToolCall, ...],
  state: Any,
  carry_out: Callable[[Any, types.ToolCall], tuple[Any, str]],
) -> tuple[Any, tuple[types.Message, ...]]:
  """The state after calls, one after the other, and a message for each."""
  answers = []
  for one in calls:
    state, text = carry_out(state, one)
    answers.append(types.Message("tool", text, tool_call_id=one.id))
  return state, tuple(answers)


def call(
  rng: np.random.Generator, name: str, /, **arguments: Any
) -> types.Action:
  """A call with its arguments in one of the usual orders."""
  keys = list(arguments)
  if len(keys) > 1 and rng.random() < 0.25:
    keys = keys[1:] + keys[:1]
  text = json.dumps({key: arguments[key] for key in keys})
  return types.Action("function_call", calls=(types.ToolCall(name, text),))


def say(text: str) -> types.Action:
  """A message."""
  return types.Action("message", content=text)
