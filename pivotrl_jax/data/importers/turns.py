"""Messages of chat rows, in the words that each kind of data has for them.

OpenAI's roles and ShareGPT's, ms-swift's and LLaMA-Factory's calls that are
messages of their own, Anthropic's blocks, Harmony's channels, Hermes markup,
the older `function_call`, and logs that keep a result inside of its call. One
message may be several of ours (results, then the user), or a part of one.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import known
from pivotrl_jax.data.importers import markup

_ROLE_KEYS = ("role", "from", "type")
_BASE = (*_ROLE_KEYS, "content", "value", "text")
# What a role is called -> ours; "call" is a call that is a message.
_ROLES = {
  "system": "system",
  "developer": "system",
  "user": "user",
  "human": "user",
  "assistant": "assistant",
  "gpt": "assistant",
  "chatgpt": "assistant",
  "ai": "assistant",
  "bot": "assistant",
  "model": "assistant",
  "function_call": "call",
  "tool_call": "call",
  "tool_calls": "call",
  "tool": "tool",
  "function": "tool",
  "ipython": "tool",
  "observation": "tool",
  "tool_response": "tool",
  "tool_result": "tool",
  "tool_output": "tool",
  "function_response": "tool",
  "function_output": "tool",
}
_CALL_KEYS = ("tool_calls", "tool_call", "function_call", "tool_uses")
_CALL_PARTS = ("tool_use", "tool_call", "function_call", "function")
_RESULT_IDS = ("tool_call_id", "tool_use_id", "call_id")
_RESULT_NAMES = ("name", "tool_name")
_CHANNEL_KEYS = ("channel", "recipient", "content_type")


@dataclasses.dataclass(frozen=True)
class Given:
  """What a row's tools tell of the arguments of a call.

  Attributes:
    whole: a name and an object -> the object without what a table filled in.
    typed: a name and parameters in text -> parameters of the declared types.
  """

  whole: Callable[[str, dict[str, Any]], dict[str, Any]]
  typed: markup.Typed


AS_WRITTEN = Given(lambda _, given: given, lambda _, given: dict(given))


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A message, or the part of a turn that a log has as one.

  Attributes:
    message: what it says.
    joins: whether it goes on with the assistant message right before it.
    answers: of a tool message, the name of the function it is from.
  """

  message: types.Message
  joins: bool = False
  answers: str | None = None


def messages(
  values: Any, place: str, given: Given = AS_WRITTEN
) -> list[types.Message]:
  """The messages of a chat, each result with the id of its call.

  Raises:
    errors.InputError: a message, a part or a key that is not known, by place.
  """
  values = chat.parsed(values, place)
  if not isinstance(values, list) or not values:
    raise errors.InputError(
      f"{place}: {values!r:.80}; expected a list of messages"
    )
  placed = ((f"{place}[{i}]", value) for i, value in enumerate(values))
  return placed_messages(placed, place, given)


def placed_messages(
  placed: Iterable[tuple[str, Any]], place: str, given: Given = AS_WRITTEN
) -> list[types.Message]:
  """`messages` of values that come with their places."""
  pieces: list[_Piece] = []
  for here, value in placed:
    for piece in _pieces(value, here, given):
      last = pieces[-1].message if pieces else None
      both = last is not None and last.role == piece.message.role == "assistant"
      if both and (piece.joins or _is_thought(last)):
        pieces[-1] = _Piece(_joined(last, piece.message))
      else:
        pieces.append(piece)
  return _answered(pieces, place)


def _pieces(value: Any, place: str, given: Given) -> Iterator[_Piece]:
  value = chat.parsed(value, place)
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{place}: {value!r:.60}; expected a message, an object with a role"
    )
  kinds = {
    "system": _system,
    "user": _user,
    "assistant": _assistant,
    "call": _call,
    "tool": _tool,
  }
  yield from kinds[_role(value, place)](value, place, given)


def _role(value, place):
  """The role of a message; `type` has it in logs that have no other key."""
  keys = [k for k in _ROLE_KEYS if value.get(k) is not None]
  if not keys:
    found = ", ".join(map(str, value))
    raise errors.InputError(f"{place}: no role; found the keys {found}")
  if {"role", "from"} <= set(keys) and value["role"] != value["from"]:
    raise errors.InputError(f"{place}: both role and from; expected one")
  role = value[keys[0]]
  if not isinstance(role, str) or role not in _ROLES:
    raise errors.InputError(
      f"{place}.{keys[0]}: {role!r:.60}; expected one of {', '.join(_ROLES)}"
    )
  return _ROLES[role]


def _content(value, place):
  return chat.one_of(value, ("content", "value", "text"), place)


def _refuse(value, place, *keys):
  known.refuse_others(value, place, _BASE, known.METADATA, known.MARKS, *keys)


def _system(value, place, given):
  del given
  _refuse(value, place)
  content = chat.text(_content(value, place), f"{place}.content")
  yield _Piece(types.Message("system", content))


def _user(value, place, given):
  """What a user says, after the results that come under its role."""
  del given
  _refuse(value, place)
  content = _content(value, place)
  if isinstance(content, str):
    yield from _results(content, None, None, "user")
    return
  said = []
  for n, part in enumerate(_parts(content, place)):
    here = f"{place}.content[{n}]"
    if isinstance(part, dict) and part.get("type") == "tool_result":
      if said:
        raise errors.InputError(f"{here}: a tool_result behind a text")
      known.refuse_others(
        part, here, ("type", "content"), _RESULT_IDS, known.METADATA
      )
      call_id = chat.own_id(chat.one_of(part, _RESULT_IDS, here), here)
      text = _result_text(part.get("content"), f"{here}.content")
      yield _Piece(types.Message("tool", text, tool_call_id=call_id))
    else:
      said.append(chat.part_text(part, here))
  if said or not content:
    yield _Piece(types.Message("user", "\n".join(said)))


def _tool(value, place, given):
  del given
  _refuse(value, place, _RESULT_IDS, _RESULT_NAMES, _CHANNEL_KEYS)
  call_id = chat.own_id(chat.one_of(value, _RESULT_IDS, place), place)
  name = chat.one_of(value, _RESULT_NAMES, place)
  text = _result_text(_content(value, place), f"{place}.content")
  yield from _results(text, call_id, name, "tool")


def _results(text, call_id, name, role):
  """A message, or the `<tool_response>` elements that it consists of."""
  found = markup.results(text)
  if found is None:
    message = types.Message(role, text, tool_call_id=call_id)
    yield _Piece(message, answers=name if isinstance(name, str) else None)
    return
  for result in found:
    yield _Piece(types.Message("tool", result, tool_call_id=call_id))


def _result_text(value, place):
  """A result's text; data that a log kept as such is JSON text again."""
  is_parts = isinstance(value, list) and all(
    isinstance(part, str) or (isinstance(part, dict) and _PART & set(part))
    for part in value
  )
  if is_parts or isinstance(value, (str, type(None))):
    return chat.text(value, place)
  return json.dumps(value, ensure_ascii=False)


_PART = frozenset(("type", "text"))


def _call(value, place, given):
  """A call that is a message: its content is the call, or a list of them."""
  _refuse(value, place)
  content = _content(value, place)
  if isinstance(content, str) and "<tool_call>" in content:
    calls = markup.calls(content, f"{place}.content", given.typed)[1]
  else:
    calls = _calls(content, f"{place}.content", given)
  if not calls:
    raise errors.InputError(f"{place}: {content!r:.60}; expected a call")
  message = types.Message(
    "assistant", tool_calls=calls, context=chat.untrained(value, place)
  )
  yield _Piece(message, joins=True)


def _calls(value: Any, place: str, given: Given) -> tuple[types.ToolCall, ...]:
  """The calls of a list, of one object, or of the JSON text of either."""
  value = chat.parsed(value, place)
  found = value if isinstance(value, list) else [value]
  return tuple(
    chat.tool_call(one, f"{place}[{n}]", given=given.whole)
    for n, one in enumerate(found)
  )


def _assistant(value, place, given):
  """A turn; with Harmony's channels it may be a part of one."""
  _refuse(value, place, _CALL_KEYS, chat.REASONING_KEYS, _CHANNEL_KEYS)
  content = _content(value, place)
  context = chat.untrained(value, place)
  if isinstance(content, str) and markup.is_harmony(content):
    for n, part in enumerate(markup.harmony(content, f"{place}.content")):
      for piece in _assistant(part, place, given):
        message = dataclasses.replace(piece.message, context=context)
        yield _Piece(message, joins=piece.joins and n > 0)
    return
  channel = markup.channel(value, place)
  if channel is not None:
    message = _of_channel(channel, value, content, place, given)
    joins = True
  else:
    message = _turn(value, content, place, given)
    joins = False
  yield _Piece(dataclasses.replace(message, context=context), joins)
  yield from _kept_results(value, place, message)


def _of_channel(channel, value, content, place, given):
  said = chat.text(content, f"{place}.content")
  recipient = value.get("recipient") or "all"
  if channel == "analysis" and recipient == "all":
    return types.Message("assistant", reasoning=said.strip() or None)
  if recipient == "all":
    return _turn(value, content, place, given)
  name = str(recipient).removeprefix("functions.")
  call = chat.tool_call(
    {"name": name, "arguments": said.strip()}, place, given=given.whole
  )
  return types.Message("assistant", tool_calls=(call,))


def _turn(value, content, place, given):
  """Thinking, text and calls, wherever in the message they are."""
  thoughts = [chat.reasoning(value, place)]
  calls = _native_calls(value, place, given)
  if isinstance(content, (str, type(None))):
    thought, said = chat.split_think(content or "")
    if said.lstrip().startswith("<think>"):
      raise errors.InputError(f"{place}.content: <think> is never closed")
    said, written = markup.calls(said, f"{place}.content", given.typed)
    thoughts.append(thought)
  else:
    said, written = _blocks(content, place, given, thoughts)
  if calls and written:
    raise errors.InputError(
      f"{place}.content: a tool_call beside the calls of another key"
    )
  return types.Message(
    "assistant",
    said,
    reasoning=chat.join(*dict.fromkeys(thoughts)),
    tool_calls=calls or written,
  )


def _blocks(content, place, given, thoughts):
  """`(text, calls)` of a list of parts; thinking goes to `thoughts`."""
  said: list[str] = []
  calls: list[types.ToolCall] = []
  for n, part in enumerate(_parts(content, place)):
    here = f"{place}.content[{n}]"
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in chat.THOUGHT_PARTS:
      thoughts.append(chat.part_text(part, here, kinds=chat.THOUGHT_PARTS))
    elif kind in _CALL_PARTS:
      held = chat.one_of(part, ("value", "text"), here)
      calls += _calls(part if held is None else held, here, given)
    elif kind != "redacted_thinking":  # Nobody can read that.
      text = chat.part_text(part, here)
      if calls and text.strip():
        raise errors.InputError(f"{here}: a text behind a call")
      said.append(text)
  thought, text = chat.split_think("\n".join(said))
  thoughts.append(thought)
  if calls:
    return text, tuple(calls)
  return markup.calls(text, f"{place}.content", given.typed)


def _parts(content, place):
  if not isinstance(content, (list, type(None))):
    raise errors.InputError(
      f"{place}.content: {content!r:.60}; expected a text or a list of parts"
    )
  return content or []


def _native_calls(value, place, given):
  """The calls under keys of a message; two keys may repeat each other."""
  found = []
  for key in _CALL_KEYS:
    if known.is_content(value.get(key)):
      held = chat.parsed(value[key], f"{place}.{key}")
      if key == "tool_uses":
        if not isinstance(held, list):
          raise errors.InputError(
            f"{place}.{key}: {held!r:.60}; expected a list"
          )
        held = [_without_result(use, f"{place}.{key}") for use in held]
      found.append(_calls(held, f"{place}.{key}", given))
  if not found:
    return ()
  for others in found[1:]:
    if [(c.name, c.arguments) for c in others] != [
      (c.name, c.arguments) for c in found[0]
    ]:
      raise errors.InputError(f"{place}: calls under two keys, not the same")
  return found[0]


def _without_result(use, place):
  if not isinstance(use, dict):
    raise errors.InputError(f"{place}: {use!r:.60}; expected an object")
  return {key: held for key, held in use.items() if key != "output"}


def _kept_results(value, place, message):
  """The results that a log keeps inside of their calls, as messages."""
  if not known.is_content(value.get("tool_uses")):
    return
  uses = chat.parsed(value["tool_uses"], place)
  for n, (use, call) in enumerate(zip(uses, message.tool_calls)):
    output = use.get("output")
    if isinstance(output, dict) and set(output) == {"text"}:
      output = output["text"]
    if output is not None:
      text = _result_text(output, f"{place}.tool_uses[{n}].output")
      said = types.Message("tool", text, tool_call_id=call.id)
      yield _Piece(said, answers=call.name)


def _is_thought(message):
  return bool(message.reasoning) and not (message.content or message.tool_calls)


def _joined(one, other):
  return types.Message(
    "assistant",
    chat.join(one.content, other.content) or "",
    reasoning=chat.join(one.reasoning, other.reasoning),
    tool_calls=(*one.tool_calls, *other.tool_calls),
    context=one.context or other.context,
  )


def _answered(pieces: list[_Piece], place: str) -> list[types.Message]:
  """The messages, calls with ids and results with those of their calls.

  A result that names no call answers the first open one of its function, or
  the first open one.
  """
  found: list[types.Message] = []
  known_ids: set[str] = set()
  waiting: list[types.ToolCall] = []
  for i, piece in enumerate(pieces):
    message = piece.message
    if message.tool_calls:
      calls = tuple(
        dataclasses.replace(c, id=c.id or f"call_{i}_{n}")
        for n, c in enumerate(message.tool_calls)
      )
      message = dataclasses.replace(message, tool_calls=calls)
      if not found or found[-1].role != "assistant":
        waiting = []
      waiting += calls
      known_ids |= {c.id for c in calls}
    elif message.role == "tool":
      here = f"{place}: result {len(found)}"
      call_id = _call_of(piece, waiting, known_ids, here)
      waiting = [c for c in waiting if c.id != call_id]
      message = dataclasses.replace(message, tool_call_id=call_id)
    found.append(message)
  return found


def _call_of(piece, waiting, known_ids, place):
  call_id = piece.message.tool_call_id
  if call_id is not None:
    if call_id not in known_ids:
      raise errors.InputError(
        f"{place}.tool_call_id: {call_id!r:.60} is the id of no call before it"
      )
    return call_id
  if not known_ids:
    return None  # Some agents act in text; what comes back is still a result.
  name = (piece.answers or "").removeprefix("functions.")
  for call in waiting:
    if not name or call.name == name:
      return call.id
  raise errors.InputError(
    f"{place}: answers no open call{f' of {name}' if name else ''}"
  )
