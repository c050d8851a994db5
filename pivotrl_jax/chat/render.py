"""Messages and tools -> token ids, by the model's own chat template."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import re
from typing import Any

import jinja2
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import markers
from pivotrl_jax.chat import tokenizer as tokenizer_lib

# The block that templates write where there is no reasoning; its beginning
# may stand in the prompt.
_EMPTY_BLOCK = re.compile(rf"\s*(?:{markers.THINK}\s*)?{markers.END_THINK}\n*")
# What a template may do wrong; not all of it is Jinja's own exception.
_TEMPLATE_ERRORS = (
  jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError,
  ArithmeticError, RecursionError,
)  # fmt: skip
_NO_ARGUMENTS = ("", "null")
_DEPTH = 100  # Most nesting of arguments that templates get as an object.


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A turn as the policy would have to sample it.

  Attributes:
    ids: `[A]` int32, through the stop token.
    opened: the prompt before them opens the thinking.
    empty_thinking: they hold an empty block of thinking, of the template's.
    lost_reasoning: the turn has reasoning, which the template does not write.
  """

  ids: np.ndarray
  opened: bool
  empty_thinking: bool
  lost_reasoning: bool


def prompt_ids(
  tokenizer: tokenizer_lib.Tokenizer,
  messages: Sequence[types.Message],
  tools: Sequence[dict[str, Any]],
) -> np.ndarray:
  """`[T]` int32 ids of a conversation up to where the policy speaks.

  Raises:
    InputError: the template refuses the conversation.
  """
  messages = _history(tokenizer, messages)
  hidden = _stand_ins(tokenizer, messages, tools)
  text = _text(tokenizer, messages, tools, hidden, prompt=True)
  return np.asarray(tokenizer.encode(text, hidden), np.int32)


def action_ids(
  tokenizer: tokenizer_lib.Tokenizer,
  messages: Sequence[types.Message],
  message: types.Message,
  tools: Sequence[dict[str, Any]],
) -> np.ndarray:
  """`[A]` int32 ids to sample so that `message` follows `messages`."""
  return demonstration(tokenizer, messages, message, tools).ids


def demonstration(
  tokenizer: tokenizer_lib.Tokenizer,
  messages: Sequence[types.Message],
  message: types.Message,
  tools: Sequence[dict[str, Any]],
) -> Demonstration:
  """The template's own text for `message`, after the prompt of `messages`.

  Raises:
    InputError: the template refuses the conversation, ends the message with
      no stop token, or writes it otherwise than its prompt begins it.
  """
  messages = _history(tokenizer, messages)
  if tokenizer.settings.reasoning == "drop":
    message = dataclasses.replace(message, reasoning=None)
  hidden = _stand_ins(tokenizer, [*messages, message], tools)

  def whole(last):
    return _text(tokenizer, [*messages, last], tools, hidden, prompt=False)

  prompt = _text(tokenizer, messages, tools, hidden, prompt=True)
  text = _continuation(prompt, message, whole, hidden.probe)
  thought = (message.reasoning or "").strip()
  block = None if thought else _EMPTY_BLOCK.match(text)
  if block and tokenizer.settings.empty_thinking == "drop":
    if markers.THINK not in block[0]:
      raise errors.InputError(
        "chat template: its prompt opens the thinking, and the turn has none;"
        " data.empty_thinking=drop leaves it out"
      )
    text, block = text[block.end() :], None
  ids = np.asarray(tokenizer.encode(text, hidden), np.int32)
  stops = np.isin(ids, tokenizer.stop_ids)
  if not stops.any():
    raise errors.InputError(
      "chat template: an assistant message ends without a stop token"
    )
  return Demonstration(
    ids[: np.argmax(stops) + 1],
    opened=prompt.rstrip().endswith(markers.THINK),
    empty_thinking=block is not None,
    lost_reasoning=thought not in hidden.show(text),
  )


def text(
  tokenizer: tokenizer_lib.Tokenizer,
  messages: Sequence[types.Message],
  tools: Sequence[dict[str, Any]],
) -> str:
  """The template's text of a whole conversation; errors as `prompt_ids`."""
  messages = _history(tokenizer, messages)
  hidden = _stand_ins(tokenizer, messages, tools)
  return hidden.show(_text(tokenizer, messages, tools, hidden, prompt=False))


def completion_text(tokenizer: tokenizer_lib.Tokenizer, ids: np.ndarray) -> str:
  """What was sampled, markup kept, without the stop token at its end."""
  return tokenizer.decode(without_stop(tokenizer, ids))


def without_stop(
  tokenizer: tokenizer_lib.Tokenizer, ids: np.ndarray
) -> np.ndarray:
  """A completion's ids but for the stop token at its end."""
  return ids[:-1] if len(ids) and ids[-1] in tokenizer.stop_ids else ids


def opens_thinking(
  tokenizer: tokenizer_lib.Tokenizer, prompt: np.ndarray
) -> bool:
  """Whether a prompt ends inside a block of thinking that it opens."""
  return tokenizer.decode(prompt[-16:]).rstrip().endswith(markers.THINK)


def check(tokenizer: tokenizer_lib.Tokenizer, place: Any) -> None:
  """InputError if the template of `place` cannot hold an agent's turns."""
  call = types.ToolCall("look", '{"path": "a"}', "call00000")
  messages = (
    types.Message("user", "Look."),
    types.Message("assistant", "", tool_calls=(call,)),
    types.Message("tool", "b", tool_call_id="call00000"),
  )
  schema = {"type": "object", "properties": {"path": {"type": "string"}}}
  tool = {"name": "look", "description": "Looks.", "parameters": schema}
  tools = ({"type": "function", "function": tool},)
  try:
    prompt_ids(tokenizer, messages, tools)
    # The turn has thought, so that no setting leaves it out.
    said = types.Message("assistant", "Done.", reasoning="It is b.")
    demonstration(tokenizer, messages, said, tools)
  except errors.InputError as error:
    raise errors.InputError(
      f"{place}: {error}; expected a template of messages with tool calls"
    ) from error


def _continuation(
  prompt: str,
  message: types.Message,
  whole: Callable[[types.Message], str],
  probe: str,
) -> str:
  """What follows `prompt` where the template writes `message` in full."""
  text = whole(message)
  if text.startswith(prompt):
    return text[len(prompt) :]
  bare = dataclasses.replace(message, reasoning=None)
  text = whole(bare)
  # The prompt has closed the thinking: there is no place for the turn's own.
  if text.startswith(prompt):
    return text[len(prompt) :]
  # It has opened it, and the template ends only what is not empty.
  thought = whole(dataclasses.replace(message, reasoning=probe))
  if not message.reasoning and thought.startswith(prompt):
    return thought[len(prompt) :].replace(probe, "", 1)
  body = whole(types.Message("assistant", probe))
  start = next(
    (i for i, (a, b) in enumerate(zip(prompt, body, strict=False)) if a != b),
    min(len(prompt), len(body)),
  )
  opening = prompt[start:]
  if body[start : start + 1] == probe and _EMPTY_BLOCK.fullmatch(opening):
    return text[start:]
  raise errors.InputError(
    "chat template: it begins the turn otherwise than its generation prompt,"
    f" which ends with {opening[:60]!r}"
  )


def _history(tokenizer, messages):
  """The messages before a turn, with the reasoning that they are to have."""
  if tokenizer.settings.reasoning == "keep":
    return list(messages)
  return [dataclasses.replace(m, reasoning=None) for m in messages]


def _stand_ins(tokenizer, messages, tools):
  """For every marker that a string of the conversation spells."""
  texts = _strings([[_to_openai(m) for m in messages], list(tools)])
  return markers.stand_ins(texts, tokenizer.markers)


def _text(tokenizer, messages, tools, hidden, *, prompt):
  """The template's text; what is hidden stays so."""

  def hide(text):
    return hidden.hide(_clean(text), tokenizer.markers)

  def hide_raw(text):
    return hidden.hide(_clean(text), tokenizer.special)

  try:
    return tokenizer.hf.apply_chat_template(
      [_mapped(_to_openai(m), hide_raw if m.raw else hide) for m in messages],
      tools=_mapped(list(tools), hide) or None,
      add_generation_prompt=prompt,
      tokenize=False,
      **tokenizer.settings.template_kwargs,
    )
  except _TEMPLATE_ERRORS as error:
    first = (str(error) or type(error).__name__).splitlines()[0]
    raise errors.InputError(f"chat template: {first}") from error


def _to_openai(message: types.Message) -> dict[str, Any]:
  out: dict[str, Any] = {"role": message.role, "content": message.content}
  if message.reasoning is not None:
    out["reasoning_content"] = message.reasoning
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
  if text.strip() in _NO_ARGUMENTS:
    return {}
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return text
  return value if isinstance(value, dict) and is_shallow(value) else text


def is_shallow(value: Any) -> bool:
  """Whether a JSON value nests no deeper than is of use to anybody."""
  level = [value]
  for _ in range(_DEPTH):
    level = [
      inner
      for outer in level
      if isinstance(outer, dict | list)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
  return not level


def _strings(value: Any) -> Iterator[str]:
  """All strings of a JSON value, keys included."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, inner in value.items():
      yield from _strings(key)
      yield from _strings(inner)
  elif isinstance(value, list | tuple):
    for inner in value:
      yield from _strings(inner)


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
  """A JSON value with `function` applied to all its strings."""
  if isinstance(value, str):
    return function(value)
  if isinstance(value, dict):
    return {function(k): _mapped(inner, function) for k, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_mapped(inner, function) for inner in value]
  return value


def _clean(text):
  """Lone surrogates, which no tokenizer encodes, become U+FFFD."""
  if text.isascii():
    return text
  units = text.encode("utf-16-le", "surrogatepass")
  return units.decode("utf-16-le", "replace")
