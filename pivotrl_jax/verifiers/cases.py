"""Scoring cases: one line of JSON -> what a verifier takes.

A label may stand in the case or in its row, what the model did may be an
action, Responses output items, a string (one assistant message) or raw model
output; which parts of a message are read is the verifier's habit.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.verifiers import judge as judge_lib
from pivotrl_jax.verifiers import verify

_LONG_NAMES = {"single_step_tool_use_with_argument_comparison": "single_step"}
# Fields of a case that scoring takes up; all others are carried through.
FIELDS = (
  "verifier", "setting", "config", "tools", "expected_action", "row",
  "model_action", "model_text", "judge",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
  """The arguments of `verify.verify`."""

  verifier: str
  demonstration: types.Action
  action: types.Action | types.ParseFailure
  tools: tuple[dict[str, Any], ...]
  config: dict[str, Any]
  setting: str
  row: dict[str, Any]
  judge: judge_lib.Judge | None

  def score(self) -> types.Verdict:
    """The verdict; InputError as `verify.verify`."""
    return verify.verify(
      self.verifier,
      self.demonstration,
      self.action,
      tools=self.tools,
      config=self.config,
      setting=self.setting,
      row=self.row,
      judge=self.judge,
    )


def read(
  case: Mapping[str, Any], *, judge: judge_lib.Judge | None = None
) -> Case:
  """Reads one case.

  Args:
    case: see the module.
    judge: asked where the case brings no stub.

  Raises:
    InputError: a field of the wrong kind, or a label that is none.
  """
  name = _get(case, "verifier", str)
  name = _LONG_NAMES.get(name, name)
  row = _get(case, "row", dict, {})
  tools = tuple(_get(case, "tools", list, []))
  if not all(isinstance(tool, dict) for tool in tools):
    raise errors.InputError("case.tools: expected a list of objects")
  setting = _get(case, "setting", str, "default")
  spec = _get(case, "judge", dict, None)
  return Case(
    verifier=name,
    demonstration=_label(name, case, row, setting),
    action=_action(name, case),
    tools=tools,
    config=_get(case, "config", dict, {}),
    setting=setting,
    row=row,
    judge=judge_lib.stub(spec) if spec else judge,
  )


def _get(case, key, kind, *default):
  value = case.get(key)
  if value is None and default:
    return default[0]
  if not isinstance(value, kind):
    raise errors.InputError(
      f"case.{key}: {value!r:.60}; expected {kind.__name__}"
    )
  return value


def _label(name, case, row, setting):
  """The demonstration, from the case or else from its row."""
  metadata = row.get("metadata")
  metadata = metadata if isinstance(metadata, dict) else {}
  if name == "terminus_judge":
    given = row.get("expected_answer") or metadata.get("expected_answer")
    if given is None and isinstance(case.get("expected_action"), dict):
      return types.action_from_json(case["expected_action"], place="label")
    return types.Action("message", given if isinstance(given, str) else "")
  found = [case.get("expected_action"), row.get("expected_action")]
  if name == "swe_pivot":
    found += [_decoded(row), metadata.get("expected_action")]
    # The first that is a call counts.
    found.sort(key=lambda x: not _is_call(x))
  label = next((x for x in found if x is not None), None)
  if name == "swe_pivot" and _is_call(label):
    label = _with_text(label, setting)
  demonstration = types.action_from_json(label, place="label")
  if demonstration.type != "message" and not demonstration.calls:
    if name == "single_step":
      raise errors.InputError("label.calls: []; expected at least one call")
  return demonstration


def _with_text(label, setting):
  """A call whose arguments may be an object; else the original takes none."""
  given = label.get("arguments")
  if setting == "compat" and not isinstance(given, (str, dict)):
    given = {}
  if not isinstance(given, dict):
    return label
  return {**label, "arguments": json.dumps(given)}


def _decoded(row):
  try:
    return json.loads(row.get("expected_answer"))
  except (TypeError, ValueError, RecursionError):
    return None


def _is_call(value):
  return isinstance(value, dict) and value.get("type") == "function_call"


def _action(name, case):
  """What the model did, as the verifier reads it."""
  text = _get(case, "model_text", str, None)
  if text is not None:
    said = parse.parse(text)
    if isinstance(said, types.ParseFailure):
      return said
    return types.action_of(said)
  said = case.get("model_action")
  if isinstance(said, str):
    return types.Action("message", said)
  if isinstance(said, dict):
    return types.action_from_json(said, place="model_action")
  if not isinstance(said, list):
    raise errors.InputError(
      f"case.model_action: {said!r:.60}; expected an action, items or a string"
    )
  calls = tuple(
    _item_call(item) for item in said if _kind(item) == "function_call"
  )
  if calls and name != "terminus_judge":
    kind = "function_call" if len(calls) == 1 else "function_call_batch"
    return types.Action(kind, calls=calls)
  texts = [
    _texts(item) for item in said
    if _kind(item) == "message" and item.get("role", "assistant") == "assistant"
  ]  # fmt: skip
  if not any(texts):
    return types.ParseFailure(_NO_ACTION.get(name, "no_action_found"), "")
  return types.Action("message", _JOIN.get(name, _first_part)(texts))


_NO_ACTION = {
  "terminus_judge": "model_output_invalid",
  "swe_pivot": "model_output_invalid",
}


def _first_part(texts):
  """The first text; a blank one only where nothing else was said."""
  parts = [part for message in texts for part in message]
  return next((part for part in parts if part.strip()), parts[0])


_JOIN = {
  "terminus_judge": lambda texts: "\n".join(p for m in texts for p in m),
  "terminal_multi_harness": lambda texts: "".join(p for m in texts for p in m),
}


def _kind(item):
  return item.get("type", "message") if isinstance(item, dict) else None


def _item_call(item):
  name, given = item.get("name"), item.get("arguments")
  if not isinstance(name, str) or not isinstance(given, str):
    raise errors.InputError(
      f"model_action: call {item!r:.60}; expected name and arguments as text"
    )
  return types.ToolCall(name, given, item.get("call_id"))


def _texts(item):
  content = item.get("content")
  if isinstance(content, str):
    return [content]
  return [
    part["text"] for part in content or ()
    if isinstance(part, dict) and part.get("type") == "output_text"
    and isinstance(part.get("text"), str)
  ]  # fmt: skip
