"""Calls, tools, results and channels that a chat has as text.

Hermes and Qwen write `<tool_call>`, `<tools>` and `<tool_response>` elements,
others `<function=NAME>`; gpt-oss writes Harmony's `<|channel|>` tokens.
"""

import ast
from collections.abc import Callable, Iterator
import json
import re
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
# The innermost: a sentence before it may speak of the tag.
_TOOLS = re.compile(r"<tools>((?:(?!<tools>).)*)</tools>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(
  r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL
)
_CHANNELS = ("analysis", "commentary", "final")
_CHANNEL = "<|channel|>"
# How other models start a call in their text; none of them is read.
_FOREIGN_CALLS = (
  "<functioncall>", "<function_call>", "<function=", "<invoke ", "<tool_use>",
  "<|python_tag|>", "[TOOL_CALLS]", "<|tool_calls_section_begin|>",
  "<|tool_call>", "<|tool_call_start|>", "<｜tool▁calls▁begin｜>",
  "<use_mcp_tool>", "<|plugin|>", "✿FUNCTION✿",
)  # fmt: skip


# A function's name and its parameters as text -> its arguments.
Typed = Callable[[str, dict[str, str]], dict[str, Any]]


def calls(
  text: str, place: str, typed: Typed
) -> tuple[str, tuple[types.ToolCall, ...]]:
  """`(text before, calls)` of a turn with `<tool_call>` elements.

  Args:
    text, place: the turn, and where it is.
    typed: reads the parameters of `<function=NAME>` elements inside.

  Raises:
    errors.InputError: an element that is cut off or no call, text behind one,
      or a call in the manner of another model.
  """
  if _OPEN not in text and _CLOSE not in text:
    for mark in _FOREIGN_CALLS:
      if re.search(rf"^\s*{re.escape(mark)}", text, re.MULTILINE):
        raise errors.InputError(
          f"{place}: holds {mark!r}, a call that is not read here; expected"
          f" tool_calls or {_OPEN}"
        )
    return text, ()
  if text.lstrip().startswith("{") and records.is_json(text):
    return text, ()  # An answer in JSON, whatever its strings hold.
  before = text.partition(_OPEN)[0]
  behind = _BLOCK.sub("", text[len(before) :])
  if behind.strip() or _CLOSE in before:
    raise errors.InputError(
      f"{place}: {behind.strip()[:40]!r} around a tool_call; expected whole"
      f" {_OPEN} elements at the end"
    )
  found = [
    made
    for n, block in enumerate(_BLOCK.findall(text))
    for made in _block(block, f"{place}.tool_call[{n}]", typed)
  ]
  return before.strip(), tuple(found)


def function_calls(
  text: str, place: str, typed: Typed
) -> tuple[str, tuple[types.ToolCall, ...]]:
  """`(text before, calls)` of a turn with `<function=NAME>` elements.

  Args:
    text, place: the turn, and where it is.
    typed: reads their parameters.
  """
  first = FUNCTION.search(text)
  if first is None:
    return text, ()
  behind = FUNCTION.sub("", text[first.start() :]).strip()
  if behind:
    raise errors.InputError(
      f"{place}: {behind[:40]!r} behind a call; expected it at the end"
    )
  made = []
  for name, body in FUNCTION.findall(text):
    left = _PARAMETER.sub("", body).strip()
    if left:
      raise errors.InputError(
        f"{place}: {left[:40]!r} in a call of {name}; expected parameters"
      )
    arguments = typed(name, dict(_PARAMETER.findall(body)))
    made.append(types.ToolCall(name, chat.arguments_text(arguments)))
  return text[: first.start()].strip(), tuple(made)


def typed(arguments: dict[str, str], schema: Any) -> dict[str, Any]:
  """Parameters as the types that a schema declares, where they can be so."""
  properties = schema.get("properties") if isinstance(schema, dict) else None
  kinds = properties if isinstance(properties, dict) else {}
  return {key: _typed(text, kinds.get(key)) for key, text in arguments.items()}


def tools(text: str) -> tuple[str, list[Any]]:
  """`(the rest, schemas)` of a system text that lists tools."""
  for match in _TOOLS.finditer(text):
    try:
      found = _values(match[1])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
      continue
    if found and all(isinstance(tool, dict) for tool in found):
      rest = f"{text[: match.start()].rstrip()}\n{text[match.end() :].lstrip()}"
      return rest.strip(), found
  return text, []


def results(text: str) -> list[str] | None:
  """The results that a text consists of; None if it is no such text."""
  found = _RESULT.findall(text)
  if not found or _RESULT.sub("", text).strip():
    return None
  return [result.strip() for result in found]


def harmony(text: str, place: str) -> Iterator[dict[str, Any]]:
  """The messages of a turn in Harmony's tokens, as chat messages."""
  for segment in re.split(r"<\|(?:start|end|return|call)\|>", text):
    if not segment.strip():
      continue
    header, ended, said = segment.partition("<|message|>")
    channel = re.search(r"<\|channel\|>\s*(\w+)", header)
    recipient = re.search(r"\bto=([\w.\-]+)", header)
    if not ended or channel is None:
      raise errors.InputError(
        f"{place}: {segment.strip()[:40]!r}; expected {_CHANNEL} and a message"
      )
    message = {"role": "assistant", "channel": channel[1], "content": said}
    if recipient is not None:
      message["recipient"] = recipient[1]
    yield message


def is_harmony(text: str) -> bool:
  """Whether a text is written in Harmony's tokens."""
  return text.lstrip().startswith((_CHANNEL, "<|start|>"))


def channel(value: dict[str, Any], place: str) -> str | None:
  """The Harmony channel of a message; None if it has none."""
  found = value.get("channel") or None
  if found is not None and found not in _CHANNELS:
    raise errors.InputError(
      f"{place}.channel: {found!r:.40}; expected {', '.join(_CHANNELS)}"
    )
  return found


def _block(block, place, typed):
  """The calls of one element: JSON, a Python literal, or `<function=`."""
  if "<function=" in block:
    before, made = function_calls(block.strip(), place, typed)
    if not made or before:
      raise errors.InputError(f"{place}: {block.strip()[:60]!r}; not a call")
    return made
  try:
    found = _values(block)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    raise errors.InputError(
      f"{place}: {block.strip()[:60]!r} is not JSON; expected name and"
      " arguments"
    ) from None
  return [chat.tool_call(value, place) for value in found]


def _values(text: str) -> list[Any]:
  """The values of JSON text, one or many or a list, or of Python's."""
  text = text.strip()
  found, at = [], 0
  try:
    while at < len(text):
      value, at = json.JSONDecoder().raw_decode(text, at)
      found += value if isinstance(value, list) else [value]
      at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
  except ValueError:
    value = ast.literal_eval(text)
    found = value if isinstance(value, list) else [value]
  return found


def _typed(text, schema):
  """A parameter's text as its declared type, if it can be read so."""
  kind = schema.get("type") if isinstance(schema, dict) else None
  if kind in (None, "string"):
    return text
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text
