"""Frozen host records that the stages hand to each other.

Every record has `to_json` / `from_json` style functions here, so that the
artifacts of a workdir (JSON lines) and the code agree on one spelling.
Arguments of a tool call are kept as the JSON *text* the model or the log
wrote: decoding is the verifier's job, and undecodable text must survive.
"""

import dataclasses
from typing import Any

from pivotrl_jax import errors

DOMAINS = ("tau", "swe", "terminal", "search")
ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call: `arguments` is JSON text, as written."""

  name: str
  arguments: str
  id: str | None = None


@dataclasses.dataclass(frozen=True)
class Message:
  """One chat message.

  Attributes:
    role: one of `ROLES`.
    content: text, "" where the log has none.
    reasoning: the thinking of an assistant turn, kept apart from `content`.
    tool_calls: the calls of an assistant turn, in order.
    tool_call_id: of a tool message, the id of the call it answers.
    context: True for an assistant message that no model wrote or that must
      not become a candidate (a canned greeting, a copied history).
    prompt: of an assistant message, the exact messages that the model saw,
      where these are not simply all the messages before it.
    raw: `content` is a policy's output as sampled, which says nothing that
      could be read: the markup in it is markup, not text.
  """

  role: str
  content: str = ""
  reasoning: str | None = None
  tool_calls: tuple[ToolCall, ...] = ()
  tool_call_id: str | None = None
  context: bool = False
  prompt: tuple["Message", ...] | None = None
  raw: bool = False


@dataclasses.dataclass(frozen=True)
class Action:
  """What a model does at one turn.

  Attributes:
    type: "message", "function_call" or "function_call_batch".
    content: the text of a message; "" otherwise.
    calls: exactly one call, or the calls of a batch; () for a message.
  """

  type: str
  content: str = ""
  calls: tuple[ToolCall, ...] = ()


@dataclasses.dataclass(frozen=True)
class ParseFailure:
  """Model output that is no action: malformed markup, cut off, empty."""

  reason: str
  text: str


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One recorded episode.

  Attributes:
    id: unique in its artifact.
    domain: one of `DOMAINS`.
    source: importer and file it came from, for people.
    task_id: groups trajectories of one task.
    reward: final reward, None where not recorded.
    success: whether the episode solved its task, None where not recorded.
    tools: OpenAI function schemas, `{"type": "function", "function": ...}`.
    messages: the chat.
    extra: fields of the source that other formats do not have (a pivot
      row's label and metadata), carried through and exported again.
  """

  id: str
  domain: str
  source: str
  task_id: str
  reward: float | None
  success: bool | None
  tools: tuple[dict[str, Any], ...]
  messages: tuple[Message, ...]
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One assistant turn that could become a pivot.

  Attributes:
    id: `TRAJECTORY/TURN`.
    trajectory_id: whose turn it is.
    turn: 0-based count of assistant turns before it.
    num_turns: assistant turns of the trajectory.
    prefix: how many messages come before the action.
    demonstration: what the trajectory did there.
  """

  id: str
  trajectory_id: str
  turn: int
  num_turns: int
  prefix: int
  demonstration: Action


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A verifier's answer: reward in [0, 1], a short reason code, findings.

  The reward is None where no verdict could be had: the judge was not to be
  reached, or gave none. That is no reward, not even 0.
  """

  reward: float | None
  reason: str
  details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Profile:
  """The frozen policy's rewards at one candidate (paper, eq. 4).

  A reward is None where no verdict could be had; mean and variance are of the
  others, and None where there are none.
  """

  candidate_id: str
  policy: str
  group_size: int
  rewards: tuple[float | None, ...]
  reasons: tuple[str, ...]
  mean: float | None
  variance: float | None
  completions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pivot:
  """A candidate kept for training, and the rule that kept it (eq. 5)."""

  candidate_id: str
  mean: float
  variance: float
  rule: str


def says_nothing(message: Message) -> bool:
  """Whether a turn has neither a call nor a text that is not blank."""
  return not message.tool_calls and not message.content.strip()


def action_of(message: Message) -> Action:
  """The action of an assistant message: its calls, else its text."""
  if len(message.tool_calls) == 1:
    return Action("function_call", calls=message.tool_calls)
  if message.tool_calls:
    return Action("function_call_batch", calls=message.tool_calls)
  return Action("message", content=message.content)


def message_of(action: Action) -> Message:
  """The assistant message that carries out `action`."""
  return Message("assistant", action.content, tool_calls=action.calls)


def action_to_json(action: Action) -> dict[str, Any]:
  """`action` in the words of a NeMo Gym pivot row."""
  if action.type == "message":
    return {"type": "message", "content": action.content}
  calls = [
    {"type": "function_call", "name": c.name, "arguments": c.arguments}
    for c in action.calls
  ]
  if action.type == "function_call":
    return calls[0]
  return {"type": "function_call_batch", "calls": calls}


def action_from_json(value: Any, *, place: str = "action") -> Action:
  """Reads `action_to_json`'s form; InputError names `place` otherwise."""
  kind = _field(value, "type", str, place)
  if kind == "message":
    return Action("message", content=_field(value, "content", str, place))
  if kind == "function_call":
    return Action("function_call", calls=(_call(value, place),))
  if kind == "function_call_batch":
    calls = _field(value, "calls", list, place)
    return Action(
      "function_call_batch",
      calls=tuple(_call(c, f"{place}.calls[{i}]") for i, c in enumerate(calls)),
    )
  raise errors.InputError(
    f"{place}.type: {kind!r}; expected message, function_call or"
    " function_call_batch"
  )


def _call(value: Any, place: str) -> ToolCall:
  return ToolCall(
    name=_field(value, "name", str, place),
    arguments=_field(value, "arguments", str, place),
  )


def _field(value: Any, key: str, kind: type, place: str) -> Any:
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{place}: {type(value).__name__}; expected an object"
    )
  if not isinstance(value.get(key), kind):
    raise errors.InputError(
      f"{place}.{key}: {value.get(key)!r:.80}; expected {kind.__name__}"
    )
  return value[key]
