"""Sampled text -> an assistant message, or the reason why it is none.

Qwen and Hermes markup: `<think>..</think>`, text, then
`<tool_call>{"name": .., "arguments": {..}}</tool_call>` blocks. The arguments
keep the very text the model wrote, so that nothing is lost or repaired.
"""

import json
import re

from transformers import PreTrainedTokenizerBase

from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.engines import base

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_THINK, _END_THINK = "<think>", "</think>"
_ARGUMENTS = re.compile(r'\s*"arguments"\s*:\s*')
_DECODER = json.JSONDecoder()


def read(
  tokenizer: PreTrainedTokenizerBase, completion: base.Completion
) -> tuple[str, types.Message | types.ParseFailure]:
  """A completion's text, and what it says; cut-off output says nothing."""
  text = render.completion_text(tokenizer, completion.ids)
  if completion.finish == "length":
    return text, types.ParseFailure("cut_off", text)
  return text, parse(text)


def parse(text: str) -> types.Message | types.ParseFailure:
  """Reads one assistant turn; never raises.

  A JSON object is content, whatever markup its strings hold: agents of some
  harnesses answer in JSON.
  """
  if text.lstrip().startswith("{") and _is_json(text):
    return types.Message("assistant", text.strip("\n"))
  reasoning, body = _split_thinking(text)
  if body is None:
    return types.ParseFailure("unclosed_think", text)
  content, *blocks = body.split(_OPEN)
  calls = []
  for block in blocks:
    inside, closed, after = block.partition(_CLOSE)
    if not closed:
      return types.ParseFailure("unclosed_tool_call", text)
    if after.strip():
      return types.ParseFailure("text_after_tool_call", text)
    call = _call(inside.strip())
    if isinstance(call, str):
      return types.ParseFailure(call, text)
    calls.append(call)
  if any(mark in content for mark in (_CLOSE, _END_THINK, _THINK)):
    return types.ParseFailure("stray_markup", text)
  return types.Message(
    "assistant",
    content.strip("\n") if not calls else content.strip(),
    reasoning=reasoning,
    tool_calls=tuple(calls),
  )


def _is_json(text):
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def _split_thinking(text):
  """(reasoning or None, the rest); the rest is None if it never ends."""
  start = text.lstrip()
  if start.startswith(_THINK):
    start = start[len(_THINK) :]
    thought, ended, rest = start.partition(_END_THINK)
    return thought.strip("\n"), rest.lstrip("\n") if ended else None
  # Some templates open the thinking in the prompt.
  thought, ended, rest = text.partition(_END_THINK)
  if ended and _THINK not in thought and _OPEN not in thought:
    return thought.strip("\n"), rest.lstrip("\n")
  return None, text


def _call(text: str) -> types.ToolCall | str:
  """A call, or why the block is none."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return "tool_call_not_json"
  if not isinstance(value, dict):
    return "tool_call_not_object"
  name = value.get("name")
  if not isinstance(name, str) or not name:
    return "tool_call_without_name"
  arguments = value.get("arguments", {})
  if isinstance(arguments, str):
    return types.ToolCall(name, arguments)
  if not isinstance(arguments, dict):
    return "tool_call_arguments_not_object"
  return types.ToolCall(name, _written(text, arguments))


def _written(text, arguments):
  """The arguments' own text where it can be found, else their JSON again."""
  for match in _ARGUMENTS.finditer(text):
    try:
      value, end = _DECODER.raw_decode(text, match.end())
    except (ValueError, RecursionError):
      continue
    if value == arguments and text[end:].lstrip()[:1] in ("}", ","):
      return text[match.end() : end]
  return json.dumps(arguments)
