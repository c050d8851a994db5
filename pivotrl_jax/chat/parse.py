"""Sampled text -> an assistant message, or the reason why it is none.

Qwen and Hermes markup: `<think>..</think>`, text, then
`<tool_call>{"name": .., "arguments": {..}}</tool_call>` blocks. The arguments
keep the very text the model wrote, so that nothing is lost or repaired.
"""

import dataclasses
import json
import re

from pivotrl_jax import types
from pivotrl_jax.chat import markers
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import records
from pivotrl_jax.engines import base

_OPEN, _CLOSE = markers.TOOL_CALL, markers.END_TOOL_CALL
_THINK, _END_THINK = markers.THINK, markers.END_THINK
_ARGUMENTS = re.compile(r'\s*"arguments"\s*:\s*')
_DECODER = json.JSONDecoder()


def read(
  tokenizer: tokenizer_lib.Tokenizer,
  completion: base.Completion,
  *,
  opened: bool,
) -> tuple[str, types.Message | types.ParseFailure]:
  """A completion's text, and what it says; cut-off output says nothing.

  Args:
    tokenizer: of the policy.
    completion: what was sampled. Markup is what was sampled as a marker; what
      merely spells one is text.
    opened: whether the prompt opened the thinking; `render.opens_thinking`.
  """
  text = render.completion_text(tokenizer, completion.ids)
  if completion.finish == "length":
    return text, types.ParseFailure("cut_off", text)
  hidden, masked = _hidden(tokenizer, completion.ids, text)
  return text, _shown(parse(masked, opened=opened), hidden)


def parse(
  text: str, *, opened: bool = False
) -> types.Message | types.ParseFailure:
  """Reads one assistant turn; never raises.

  A JSON object is content, whatever markup its strings hold: agents of some
  harnesses answer in JSON.

  Args:
    text: what was sampled.
    opened: the prompt has opened the thinking. Else a `</think>` that nothing
      opened still tells that it had.
  """
  if not opened and text.lstrip().startswith("{") and records.is_json(text):
    return types.Message("assistant", text.strip("\n"))
  reasoning, body = _split_thinking(text, opened)
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


def _hidden(tokenizer, ids, text):
  """Stand-ins, and `text` with the markers hidden that ids only spell."""
  ids = [int(i) for i in render.without_stop(tokenizer, ids)]
  sampled = sum(i in tokenizer.marker_ids for i in ids)
  if len(tokenizer.markers.findall(text)) == sampled:
    return markers.stand_ins((), tokenizer.markers), text
  hidden = markers.stand_ins([text], tokenizer.markers)
  parts, plain = [], []
  for index in [*ids, None]:
    if index is not None and index not in tokenizer.marker_ids:
      plain.append(index)
      continue
    parts.append(hidden.hide(tokenizer.decode(plain), tokenizer.markers))
    parts.append("" if index is None else tokenizer.decode([index]))
    plain = []
  return hidden, "".join(parts)


def _shown(said, hidden):
  """What was said, with hidden markers spelled out again."""
  if isinstance(said, types.ParseFailure):
    return types.ParseFailure(said.reason, hidden.show(said.text))
  return dataclasses.replace(
    said,
    content=hidden.show(said.content),
    reasoning=said.reasoning and hidden.show(said.reasoning),
    tool_calls=tuple(
      types.ToolCall(hidden.show(c.name), hidden.show(c.arguments))
      for c in said.tool_calls
    ),
  )


def _split_thinking(text, opened):
  """(reasoning or None, the rest); the rest is None if it never ends."""
  start = text.lstrip()
  if opened or start.startswith(_THINK):
    start = start.removeprefix(_THINK)
    end = _end_of_thinking(start)
    if end is None:
      return start.strip("\n"), None
    return _parts(start, end)
  end = _end_of_thinking(text)
  if end is not None:
    before = text[:end]
    balanced = before.count(_OPEN) == before.count(_CLOSE)
    if balanced and _THINK not in before:
      return _parts(text, end)
  return None, text


def _parts(text, end):
  return text[:end].strip("\n"), text[end + len(_END_THINK) :].lstrip("\n")


def _end_of_thinking(text):
  """Where the last `</think>` is that stands in no call; None without one."""
  end = text.rfind(_END_THINK)
  while end >= 0:
    closed = text.find(_CLOSE, end)
    if closed < 0 or text.find(_OPEN, end, closed) >= 0:
      return end
    call = text.rfind(_OPEN, 0, end)
    if call < 0:
      return end
    end = text.rfind(_END_THINK, 0, call)
  return None


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
  arguments = value.get("arguments")
  if arguments is None:
    return types.ToolCall(name, "{}")
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
