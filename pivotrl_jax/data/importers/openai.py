"""Chat rows: OpenAI's, ShareGPT's, Anthropic's and their relatives.

A row is the list of messages itself, or an object with the chat under one of
`_CHATS` or as prompt and completion, the tools, a system prompt, and what came
of it. Tables hold any of these as JSON text.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known
from pivotrl_jax.data.importers import markup
from pivotrl_jax.data.importers import turns

_CHATS = (
  "messages", "conversations", "conversation", "trajectory", "chat", "dialog",
  "dialogue",
)  # fmt: skip
_COMPLETIONS = ("completion", "response")
_TOOLS = (
  "tools", "functions", "available_tools", "tool_definitions", "tool_schemas",
)  # fmt: skip
_SYSTEMS = ("system", "system_prompt", "system_message")
_IDS = (
  "id", "uuid", "trajectory_id", "simulation_id", "instance_id",
  "conversation_id", "session_id", "sample_id", "prompt_id",
)  # fmt: skip
_TASKS = ("task_id", "instance_id")
_SUCCESSES = (
  "success", "resolved", "solved", "is_resolved", "is_success", "is_correct",
  "correct", "passed", "label",
)  # fmt: skip
_REWARDS = ("reward", "final_reward", "total_reward", "score")
OUTCOMES = (*_SUCCESSES, *_REWARDS)  # What `outcome` reads.
# Where rows keep what came of them, besides columns of their own.
_FACTS = ("metadata", "meta", "info", "extra_info")
# Columns that a model reads or writes; a row that has one is not understood.
_REFUSED = (
  "images", "image", "videos", "video", "audios", "audio", "objects",
  "instructions", "developer", "history", "chosen", "rejected",
  "rejected_response", "rejected_messages",
)  # fmt: skip


def matches(value: Any) -> bool:
  """Whether a row is a chat, or has one."""
  if isinstance(value, dict):
    return _chat_key(value) is not None or _completion_key(value) is not None
  return isinstance(value, list) and bool(value) and _is_chat(value)


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row; the columns that say something else, once a file."""
  unread: dict[str, None] = {}
  for place, row in file.rows():
    found = chat.one_row(file, place, row, trajectory)
    yield found
    if isinstance(found, types.Trajectory):
      unread |= dict.fromkeys(_unread(row))
  if unread:
    names = ", ".join(itertools.islice(unread, 20))
    yield files.Skip(file.name, None, f"columns not read: {names}")


def trajectory(
  file: files.File, place: files.Place, row: Any
) -> types.Trajectory:
  """The row's chat, with its own id, task and outcome where it has them."""
  if isinstance(row, list):
    row = {"messages": row}
  for key in _unread(row):
    if key in _REFUSED or _is_chat(row[key]):
      what = "image part" if "image" in key else "not read beside a chat"
      raise errors.InputError(f"row.{key}: {row[key]!r:.60}; {what}")
  tools = _tools(row, file.arrow)
  given = _given(tools, file.arrow)
  found = _messages(row, given)
  system = _system(row)
  if system:
    if found[0].role == "system" and found[0].content.strip() != system.strip():
      raise errors.InputError(
        "row.system: another text than that of the first message; expected one"
      )
    found = found if found[0].role == "system" else [
      types.Message("system", system), *found
    ]  # fmt: skip
  if not tools and found[0].role == "system":
    rest, tools = markup.tools(found[0].content)
    found[0] = dataclasses.replace(found[0], content=rest)
  reward, success = outcome(row)
  return chat.trajectory(
    file,
    "openai",
    _first_id(row, _IDS, place),
    found,
    tools=tools,
    task_id=_first_id(row, _TASKS, None),
    reward=reward,
    success=success,
  )


def _is_chat(value: Any) -> bool:
  """Whether a value is a list of messages, or looks like its JSON text."""
  if isinstance(value, str):
    return value.lstrip()[:1] == "[" and any(r in value for r in _ROLE_TEXT)
  return isinstance(value, list) and any(map(_is_message, value))


_ROLE_TEXT = ('"role"', '"from"', '\\"role\\"')


def _is_message(value):
  if not isinstance(value, dict):
    return isinstance(value, str) and _ROLE_TEXT[0] in value
  is_langchain = value.get("type") in ("human", "ai") and "content" in value
  return bool(value.get("role") or value.get("from")) or is_langchain


def _chat_key(row):
  held = [key for key in _CHATS if _is_chat(row.get(key))]
  if held:
    return held[0]
  return next((key for key in _CHATS[:2] if row.get(key) == []), None)


def _completion_key(row):
  """The column that goes on with the prompt; None where there is none."""
  for key in _COMPLETIONS:
    if all(_is_said(row.get(k)) for k in ("prompt", key)):
      return key
  return None


def _is_said(value):
  is_message = isinstance(value, dict) and "role" in value
  return isinstance(value, str) or is_message or _is_chat(value)


def _messages(row, given):
  key = _chat_key(row)
  if key is not None:
    return turns.messages(row[key], key, given)
  key = _completion_key(row)
  before = _as_chat(row["prompt"], "user")
  after = _as_chat(row[key], "assistant")
  # The completion alone is to be learnt.
  before = [chat.parsed(m, "prompt") for m in before]
  before = [{**m, "weight": 0} if isinstance(m, dict) else m for m in before]
  return turns.messages([*before, *after], f"prompt+{key}", given)


def _as_chat(value, role):
  if isinstance(value, str) and not _is_chat(value):
    return [{"role": role, "content": value}]
  value = chat.parsed(value, "")
  return [value] if isinstance(value, dict) else value


def _tools(row, arrow):
  """The schemas of the row; several columns may repeat each other."""
  kept = () if arrow else ("default", "const")
  found = [
    chat.wrap_tools(row[key], f"row.{key}", kept=kept)
    for key in _TOOLS
    if known.is_content(row.get(key)) and row[key] not in ("[]", "null")
  ]
  if any(other != found[0] for other in found[1:]):
    raise errors.InputError("row: tools under two keys, not the same")
  return found[0] if found else ()


def _system(row):
  texts = [
    chat.text(row[key], f"row.{key}")
    for key in _SYSTEMS
    if known.is_content(row.get(key))
  ]
  if len(set(texts)) > 1:
    raise errors.InputError("row: system prompts under two keys")
  return texts[0] if texts else ""


def _first_id(row, keys, default):
  """The first of the row's own ids: a number is one, 0 too."""
  for key in keys:
    found = row.get(key)
    if isinstance(found, (str, int)) and not isinstance(found, bool):
      if found != "":
        return found
  return default


def outcome(row: dict[str, Any]) -> tuple[float | None, bool | None]:
  """`(reward, success)`, from the row's columns or from its facts."""
  facts = [row[key] for key in _FACTS if isinstance(row.get(key), dict)]
  for held in (row, *facts):
    reward = _reward(held)
    said = {
      key: _truth(held[key], f"row.{key}")
      for key in _SUCCESSES
      if held.get(key) is not None and _is_outcome(key, held[key])
    }
    if len(set(said.values())) > 1:
      raise errors.InputError(
        f"row: {' and '.join(said)} say different things of its success"
      )
    if said or reward is not None:
      success = next(iter(said.values()), None)
      return reward, reward >= 1 if success is None else success
  return None, None


def _is_outcome(key, value):
  """A label may also be the name of a class."""
  return key != "label" or (isinstance(value, (bool, int)) and value in (0, 1))


def _reward(held):
  for key in _REWARDS:
    found = held.get(key)
    if found is None:
      continue
    if not isinstance(found, (int, float)):
      raise errors.InputError(f"row.{key}: {found!r:.60}; expected a number")
    if key != "score" or 0 <= found <= 1:  # Others are marks out of ten.
      return float(found)
  return None


def _truth(value, place):
  words = {"true": True, "false": False}
  if isinstance(value, str) and value.lower() in words:
    return words[value.lower()]
  if isinstance(value, (bool, int, float)) and value in (0, 1):
    return bool(value)
  raise errors.InputError(f"{place}: {value!r:.60}; expected true or false")


def _unread(row):
  """The columns with content that `trajectory` does not take."""
  if not isinstance(row, dict):
    return []
  chat_key = _chat_key(row)
  completion = _completion_key(row)
  own = (chat_key,) if chat_key else ("prompt", completion)
  taken = {*own, *_TOOLS, *_SYSTEMS, *_IDS, *_TASKS}
  taken |= {k for k in _SUCCESSES if _is_outcome(k, row.get(k))}
  taken |= set(_REWARDS[:-1])
  if not isinstance(row.get("score"), (int, float)) or 0 <= row["score"] <= 1:
    taken.add("score")
  return [
    key
    for key, found in row.items()
    if known.is_content(found)
    and key not in taken
    and (key not in known.COLUMNS or _is_chat(found))
  ]


def _given(tools, arrow) -> turns.Given:
  schemas = {
    tool["function"]["name"]: tool["function"].get("parameters") or {}
    for tool in tools
  }
  return turns.Given(
    lambda name, arguments: _without_filled(
      arguments, schemas.get(name, {}), arrow, outermost=True
    ),
    lambda name, arguments: markup.typed(arguments, schemas.get(name)),
  )


def _without_filled(value, schema, arrow, *, outermost=False):
  """Arguments without the nulls that a table put where a call had no key.

  A null goes if the schema does not know its key; in a table also if the
  schema knows it, does not need it and says that it cannot be null. Objects
  that a schema leaves open keep theirs, but for tables.
  """
  schema = schema if isinstance(schema, dict) else {}
  if isinstance(value, list):
    return [_without_filled(v, schema.get("items"), arrow) for v in value]
  if not isinstance(value, dict):
    return value
  properties = schema.get("properties")
  if not isinstance(properties, dict):
    properties = {}
  is_open = not (properties or outermost or arrow)
  needed = schema.get("required") or ()
  return {
    key: _without_filled(found, properties.get(key), arrow)
    for key, found in value.items()
    if found is not None
    or is_open
    or key in needed
    or (key in properties and (not arrow or _may_be_null(properties[key])))
  }


def _may_be_null(schema):
  if not isinstance(schema, dict):
    return True
  kinds = schema.get("type", "null")
  choices = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
  if choices:
    return any(map(_may_be_null, choices))
  return (
    kinds == "null"
    or (isinstance(kinds, list) and "null" in kinds)
    or schema.get("nullable") is True
    or None in (schema.get("enum") or ())
  )
