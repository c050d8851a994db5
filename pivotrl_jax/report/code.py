"""Actions as a person reads them: calls as code, text as it stands.

What a model wrote is JSON in JSON; nobody should have to read its backslashes.
"""

import json
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render

_WIDTH = 78  # Characters of a call on one line.


def action(value: types.Action) -> str:
  """A demonstration."""
  return "\n".join(map(call, value.calls)) or content(value.content)


def message(value: types.Message) -> str:
  """A message of a chat: what it says, then its calls."""
  parts = [content(value.content), *map(call, value.tool_calls)]
  if value.reasoning:
    parts = [f"(thinking)\n{value.reasoning}\n(end of thinking)", *parts]
  return "\n".join(part for part in parts if part)


def sampled(text: str) -> str:
  """What a policy wrote; as it is where it is no action."""
  said = parse.parse(text)
  return text if isinstance(said, types.ParseFailure) else message(said)


def call(value: types.ToolCall) -> str:
  """`name(key="text", count=3)`; long or broken values a line each."""
  try:
    arguments = json.loads(value.arguments or "{}")
  except (ValueError, RecursionError):
    arguments = None
  if not isinstance(arguments, dict) or not render.is_shallow(arguments):
    return f"{value.name}({value.arguments})"
  line = ", ".join(f"{k}={_literal(v)}" for k, v in arguments.items())
  line = f"{value.name}({line})"
  if len(line) <= _WIDTH and "\n" not in line:
    return line
  return f"{value.name}(\n{_block(arguments, '  ')}\n)"


def content(text: str) -> str:
  """Text as it stands; an object of JSON, as some agents answer, by keys."""
  if not text.lstrip().startswith("{"):
    return text
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return text
  if not isinstance(value, dict) or not render.is_shallow(value):
    return text
  return _block(value, "")


def _literal(value: Any) -> str:
  """A value on one line: text in quotes that it does not hold itself."""
  if not isinstance(value, str):
    return json.dumps(value, ensure_ascii=False)
  quote = "'" if '"' in value and "'" not in value else '"'
  return f"{quote}{value}{quote}"


def _block(value: Any, indent: str) -> str:
  """A value over lines, inner ones further in."""
  if isinstance(value, str):
    return "\n".join(f"{indent}{line}" for line in value.split("\n"))
  if isinstance(value, dict) and value:
    entries = [(f"{key}:", inner) for key, inner in value.items()]
  elif isinstance(value, list) and value:
    entries = [("-", inner) for inner in value]
  else:
    return f"{indent}{_literal(value)}"
  return "\n".join(_entry(head, inner, indent) for head, inner in entries)


def _entry(head, value, indent):
  """`head value` on a line where it fits, else the value below it."""
  is_long = isinstance(value, str) and ("\n" in value or len(value) > _WIDTH)
  if is_long or (isinstance(value, dict | list) and value):
    return f"{indent}{head}\n{_block(value, indent + '  ')}"
  return f"{indent}{head} {_literal(value)}"
