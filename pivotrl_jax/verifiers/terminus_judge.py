"""Terminal agents that answer in JSON: similar keystrokes, or a judge's word.

The behaviour of NeMo Gym's terminus_judge ("compat"), and the same with its
defects mended ("default"): thinking ends outside the JSON only, completion
flags agree both ways, similarity has no junk heuristic, and a judge that
gives no verdict gives no reward.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import json
from typing import Any

import jsonschema

from pivotrl_jax import types
from pivotrl_jax.verifiers import arguments
from pivotrl_jax.verifiers import judge as judge_lib
from pivotrl_jax.verifiers import similarity

DEFAULTS = {
  "enable_string_similarity": False,
  "string_similarity_threshold": 0.95,
  "enable_llm_judge": True,
  "check_twice_swap": False,
  "reward_if_swap_fails": 0.0,
  "judge_equal_label": "[[A=B]]",
  "judge_not_equal_label": "[[A!=B]]",
  # What a judge's silence earns; None: it is no reward and counts for nothing.
  "judge_fallback_reward": None,
}
_END_THINK = "</think>"
_DECODER = json.JSONDecoder()
_MOST_STARTS = 32  # Places where the answer may begin that are tried.


def _schema(required, optional, **command):
  """Schema of a reply; of a command the first keys are required."""
  kinds = {
    "analysis": "string",
    "plan": "string",
    "state_analysis": "string",
    "explanation": "string",
    "is_task_complete": "boolean",
    "task_complete": "boolean",
  }
  one = {
    "type": "object",
    "properties": {key: {"type": kind} for key, (kind, _) in command.items()},
    "required": [key for key, (_, needed) in command.items() if needed],
    "additionalProperties": False,
  }
  top = {key: {"type": kinds[key]} for key in (*required, *optional)}
  return jsonschema.Draft202012Validator(
    {
      "type": "object",
      "properties": {**top, "commands": {"type": "array", "items": one}},
      "required": [*required, "commands"],
      "additionalProperties": False,
    }
  )


_SCHEMAS = {
  "terminus_1": _schema(
    ("state_analysis", "explanation", "is_task_complete"),
    (),
    keystrokes=("string", True),
    is_blocking=("boolean", True),
    timeout_sec=("number", True),
  ),
  "terminus_2": _schema(
    ("analysis", "plan"),
    ("task_complete",),
    keystrokes=("string", True),
    duration=("number", False),
  ),
}


def verify(
  demonstration: types.Action,
  action: types.Action,
  *,
  tools: Sequence[Mapping[str, Any]] = (),
  config: Mapping[str, Any],
  setting: str,
  row: Mapping[str, Any],
  judge: judge_lib.Judge | None = None,
) -> types.Verdict:
  """See the module.

  Args:
    demonstration: a message whose text is the expected JSON.
    action: a message; calls are no answer here.
    tools: not consulted.
    config: see `DEFAULTS`.
    setting: "default" or "compat".
    row: `metadata.harness`, and `threshold` over the config's.
    judge: asked where `enable_llm_judge` says so.
  """
  del tools
  wanted = demonstration.content
  if not wanted:
    return types.Verdict(0.0, "expected_answer_invalid")
  text = action.content.strip()
  expected = _object(wanted)
  if setting == "compat":
    # Blindly what follows the last mark, which may stand inside a string.
    text = text.rsplit(_END_THINK, 1)[-1].strip()
    answer = _object(text)
  else:
    text, answer = _answer(text)
  if not text:
    return types.Verdict(0.0, "model_output_invalid")
  if expected is None:
    return types.Verdict(0.0, "expected_answer_invalid")
  if answer is None:
    return types.Verdict(0.0, "model_output_invalid")
  reason = _shape(expected, answer, row, setting)
  if reason is not None:
    return types.Verdict(0.0, reason)
  return _compare(wanted, text, expected, answer, config, setting, row, judge)


def _shape(expected, answer, row, setting):
  """Why an answer is refused before what it does is looked at, or None."""
  schema = _SCHEMAS.get(_metadata(row).get("harness"))
  if schema is None:
    return "unknown_harness"
  if not schema.is_valid(expected):
    return "expected_answer_invalid"
  if not schema.is_valid(answer):
    return "schema_check_failed"
  want, got = _complete(expected), _complete(answer)
  if (want and not got) or (setting == "default" and got and not want):
    return "task_complete_check_failed"
  return None


def _compare(wanted, text, expected, answer, config, setting, row, judge):
  details: dict[str, Any] = {}
  if config["enable_string_similarity"]:
    threshold = row.get("threshold")
    if threshold is None:
      threshold = config["string_similarity_threshold"]
    left, right = _keystrokes(expected), _keystrokes(answer)
    score = similarity.ratio(
      left, right, least=threshold, autojunk=setting == "compat"
    )
    if bool(expected["commands"]) != bool(answer["commands"]):
      score = 0.0  # Even where the commands are all empty.
    details["similarity_score"] = score
    if score >= threshold:
      return types.Verdict(1.0, "none", details)
    if not config["enable_llm_judge"]:
      return types.Verdict(0.0, "string_similarity_below_threshold", details)
  if not config["enable_llm_judge"]:
    return types.Verdict(1.0, "none", details)
  return judge_lib.ask(judge, wanted, text, config, details, setting)


def _object(text):
  """The JSON object that `text` is, else None."""
  value = arguments.decode(text)
  return value if isinstance(value, dict) else None


def _answer(text):
  """The text after the thinking, and the object it is, else (text, None)."""
  for start in itertools.islice(_starts(text), _MOST_STARTS):
    try:
      value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
      continue
    if isinstance(value, dict) and not text[end:].strip():
      return text[start:], value
  return text.rsplit(_END_THINK, 1)[-1].strip(), None


def _starts(text) -> Iterator[int]:
  """Where the answer may begin: at once, or after an end of thinking."""
  at = 0
  while True:
    start = at
    while start < len(text) and text[start].isspace():
      start += 1
    if text[start : start + 1] == "{":
      yield start
    at = text.find(_END_THINK, at)
    if at < 0:
      return
    at += len(_END_THINK)


def _metadata(row):
  metadata = row.get("metadata")
  return metadata if isinstance(metadata, dict) else {}


def _complete(answer):
  return bool(answer.get("task_complete", answer.get("is_task_complete")))


def _keystrokes(answer):
  return "".join(command["keystrokes"] for command in answer["commands"])
