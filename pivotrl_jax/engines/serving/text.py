"""Sampled ids as text: token by token, up to a stop string, as it streams."""

from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.chat import markers
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base

_TORN = "\ufffd"  # What decodes to it may be the start of a character.
_MARKS = (
  markers.TOOL_CALL,
  markers.END_TOOL_CALL,
  markers.THINK,
  markers.END_THINK,
)


def cut_at_stop(
  tokenizer: tokenizer_lib.Tokenizer,
  ids: Sequence[int],
  stops: Sequence[str],
) -> tuple[int, str] | None:
  """How many ids it takes to say the first stop string, and the text before.

  None where none is said.
  """
  text = tokenizer.decode(ids)
  places = [text.find(stop) for stop in stops]
  if not stops or max(places) < 0:
    return None
  count = next(
    n
    for n in range(1, len(ids) + 1)
    if any(stop in tokenizer.decode(ids[:n]) for stop in stops)
  )
  text = tokenizer.decode(ids[:count])
  return count, text[: min(p for s in stops if (p := text.find(s)) >= 0)]


def pieces(
  tokenizer: tokenizer_lib.Tokenizer, ids: Sequence[int]
) -> list[tuple[str, list[int] | None]]:
  """Each token's text and UTF-8 bytes; None where it is part of a character."""
  found = []
  for i in ids:
    piece = tokenizer.decode([i])
    whole = _TORN not in piece
    found.append((piece, list(piece.encode("utf-8")) if whole else None))
  return found


def safe(text: str, stops: Sequence[str]) -> str:
  """What of a text that goes on is final: no stop may begin at its end."""
  text = text.rstrip(_TORN)
  held = max(
    (_overlap(text, stop) for stop in stops),
    default=0,
  )
  return text[: len(text) - held]


def visible(text: str) -> str:
  """What of a chat answer that goes on is content already."""
  ends = [text.find(mark) for mark in _MARKS]
  text = text[: min((e for e in ends if e >= 0), default=len(text))]
  # Content before a call is stripped, and a mark may begin at the end.
  return safe(text, _MARKS).strip("\n").rstrip()


def message(
  tokenizer: tokenizer_lib.Tokenizer,
  ids: Sequence[int],
  *,
  stopped: str | None,
  finish: str,
  opened: bool,
) -> types.Message:
  """What a chat answer says; as plain content where it is malformed.

  Args:
    tokenizer: of the policy.
    ids: of the answer, through the stop.
    stopped: its text, where a stop string has cut it.
    finish: "stop" or "length".
    opened: whether the prompt opened the thinking.
  """
  if stopped is not None:
    text, said = stopped, parse.parse(stopped, opened=opened)
  else:
    whole = base.Completion(
      np.array(ids, np.int32), np.zeros(len(ids), np.float32), finish
    )
    text, said = parse.read(tokenizer, whole, opened=opened)
  if isinstance(said, types.Message):
    return said
  return types.Message("assistant", text.strip("\n"))


def chat_json(said: types.Message, ids: Sequence[str]) -> dict[str, Any]:
  """OpenAI's message; `ids` are those of its calls."""
  out: dict[str, Any] = {"role": "assistant", "content": said.content or None}
  if said.reasoning is not None:
    out["reasoning_content"] = said.reasoning
  if said.tool_calls:
    out["tool_calls"] = [
      {
        "id": call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
      }
      for call, call_id in zip(said.tool_calls, ids, strict=True)
    ]
  else:
    out["content"] = said.content
  return out


def _overlap(text, stop):
  """How much of the end of a text may be the beginning of `stop`."""
  lengths = range(min(len(text), len(stop) - 1), 0, -1)
  return next((n for n in lengths if text.endswith(stop[:n])), 0)


def offsets(texts: Sequence[str], start: int) -> list[int]:
  """Where each piece begins, in characters."""
  return list(itertools.accumulate(map(len, texts), initial=start))[:-1]
