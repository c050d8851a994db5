"""Messages and tools -> token ids, by the model's own chat template."""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib


def prompt_ids(
  tokenizer: PreTrainedTokenizerBase,
  messages: Sequence[types.Message],
  tools: Sequence[dict[str, Any]],
) -> np.ndarray:
  """`[T]` int32 ids of a conversation up to where the policy speaks."""
  return _encode(tokenizer, _text(tokenizer, messages, tools, prompt=True))


def action_ids(
  tokenizer: PreTrainedTokenizerBase,
  messages: Sequence[types.Message],
  message: types.Message,
  tools: Sequence[dict[str, Any]],
) -> np.ndarray:
  """`[A]` int32 ids to sample so that `message` follows `messages`.

  The template's own text for the message, after the prompt, through its stop
  token. Where a template writes the last message's beginning differently
  from its generation prompt, what both share is kept and the rest sampled.

  Raises:
    InputError: the template ends a message with no stop token.
  """
  prompt = _text(tokenizer, messages, tools, prompt=True)
  whole = _text(tokenizer, [*messages, message], tools, prompt=False)
  ids = _encode(tokenizer, whole[_shared(prompt, whole) :])
  stops = np.isin(ids, tokenizer_lib.stop_ids(tokenizer))
  if not stops.any():
    raise errors.InputError(
      "chat template: an assistant message ends without a stop token"
    )
  return ids[: np.argmax(stops) + 1]


def completion_text(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
  """What was sampled, markup kept, without the stop token at its end."""
  if len(ids) and ids[-1] in tokenizer_lib.stop_ids(tokenizer):
    ids = ids[:-1]
  return tokenizer.decode(ids, skip_special_tokens=False)


def _encode(tokenizer, text):
  ids = tokenizer.encode(text, add_special_tokens=False)
  return np.asarray(ids, np.int32)


def _text(tokenizer, messages, tools, *, prompt):
  return tokenizer.apply_chat_template(
    [_to_openai(m) for m in messages],
    tools=list(tools) or None,
    add_generation_prompt=prompt,
    tokenize=False,
  )


def _shared(prompt, whole):
  """How many leading characters are the same."""
  if whole.startswith(prompt):
    return len(prompt)
  pairs = zip(prompt, whole, strict=False)
  return next(i for i, (a, b) in enumerate(pairs) if a != b)


def _to_openai(message: types.Message) -> dict[str, Any]:
  out: dict[str, Any] = {
    "role": message.role,
    "content": _clean(message.content),
  }
  if message.reasoning is not None:
    out["reasoning_content"] = _clean(message.reasoning)
  if message.tool_calls:
    out["tool_calls"] = [
      {
        "id": call.id,
        "type": "function",
        "function": {
          "name": call.name,
          "arguments": _arguments(call.arguments),
        },
      }
      for call in message.tool_calls
    ]
  if message.tool_call_id is not None:
    out["tool_call_id"] = message.tool_call_id
  return out


def _arguments(text):
  """An object where the text is one, as templates want; else the text."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return text
  return value if isinstance(value, dict) else text


def _clean(text):
  """Lone surrogates, which no tokenizer encodes, become U+FFFD."""
  return text.encode("utf-8", "replace").decode("utf-8")
