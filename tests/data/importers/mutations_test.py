"""Damaged files of every format: no traceback, no surprise, nothing unnamed.

The files are real ones and small cases of containers and formats; each is cut,
shuffled, renamed, retyped or packed anew. $PIVOTRL_MUTATIONS says how many.
"""

import copy
import gzip
import json
import os
import random
import re

import pytest

from pivotrl_jax import types
from pivotrl_jax.data import importers
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import known
from pivotrl_jax.data.importers import openai

_COUNT = int(os.environ.get("PIVOTRL_MUTATIONS", "300"))
_MOST_BYTES = 60_000
# Formats whose rows belong together.
_LOGS = (*importers.FOLDERS, "codex", "terminus")
# Words of markup, and keys whose text is no content of a chat.
_MARKUP = set(
  "tool_call tool_response tools think analysis commentary final functions"
  " channel message start end return call constrain json to name arguments"
  " assistant null function parameter".split()
)
# A command in a text is a call of this tool.
_OWN = {"bash", "command"}
_ASIDE = {
  *known.METADATA, *known.MARKS, "role", "from", "type", "channel",
  "recipient", "content_type", "data",
}  # fmt: skip
_JUNK = (None, 3, 0.5, True, "", "x", [], {}, [None], ["x"], {"a": 1}, [[{}]])


def _cases(folder):
  """`(name, rows)` of the small cases: files of JSON, lines, or a table."""
  for path in sorted(folder.glob("*.json")):
    case = json.loads(path.read_text())
    for name, text in case["files"].items():
      rows = _parsed(text)
      if rows:
        yield name.rpartition("/")[2], rows
    if case["parquet_rows"]:
      yield "rows.jsonl", case["parquet_rows"]


def _parsed(text):
  """The rows of a file; a document is one row."""
  try:
    return [json.loads(text)]
  except ValueError:
    pass
  try:
    return [json.loads(line) for line in text.splitlines() if line.strip()]
  except ValueError:
    return []


def _real(folder):
  """`(name, rows)`: of each source the smallest files, long lists cut."""
  for source in sorted(p for p in folder.iterdir() if p.is_dir()):
    taken = 0
    for path in sorted(source.rglob("*"), key=lambda p: p.stat().st_size):
      plain = path.name.removesuffix(".gz")
      if not plain.endswith((".json", ".jsonl", ".traj")) or taken == 4:
        continue
      if importers.detect(path) is None:
        continue
      with records.open_binary(path) as handle:
        rows = _parsed(handle.read().decode())[:2]
      rows = [_trimmed(row) for row in rows]
      if len(json.dumps(rows)) < _MOST_BYTES:
        taken += 1
        yield plain, rows


def _trimmed(row):
  if isinstance(row, list):
    return row[:2]
  for key in ("simulations", "tasks"):
    if isinstance(row.get(key), list):
      row = {**row, key: row[key][:2]}
  if isinstance(row.get("splits"), dict):
    return {**row, "splits": {k: v[:2] for k, v in row["splits"].items()}}
  return row


def _spots(value):
  keys = range(len(value)) if isinstance(value, list) else list(value)
  for key in keys:
    yield value, key
    if isinstance(value[key], (dict, list)):
      yield from _spots(value[key])


def _mutated(rows, draw):
  """The rows with one to three changes in them."""
  rows = copy.deepcopy(rows)
  for _ in range(draw.randint(1, 3)):
    spot, key = draw.choice(list(_spots(rows)))
    kind = draw.choice(("rename", "retype", "remove", "shuffle", "twice"))
    if kind == "rename" and isinstance(spot, dict):
      others = [str(k) for s, k in _spots(rows) if isinstance(s, dict)]
      spot[draw.choice([f"{key}_x", "content", *others])] = spot.pop(key)
    elif kind == "retype":
      spot[key] = copy.deepcopy(draw.choice(_JUNK))
    elif kind == "remove" and len(rows) + len(spot) > 2:
      del spot[key]
    elif kind == "shuffle" and isinstance(spot[key], list):
      draw.shuffle(spot[key])
    elif kind == "twice" and isinstance(spot, list):
      spot.insert(key, copy.deepcopy(spot[key]))
  return rows


def _file(name, rows, draw):
  """`(name, bytes)` of a file in some container; one in five is cut."""
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  texts = [(name, lines), ("rows.jsonl", lines), ("rows.json", lines)]
  texts.append(("rows.json", json.dumps(rows if len(rows) > 1 else rows[0])))
  name, text = draw.choice(texts)
  content = text.encode()
  if draw.random() < 0.2:
    content = content[: draw.randrange(len(content))]
  if draw.random() < 0.2:
    name, content = f"{name}.gz", gzip.compress(content)
    if draw.random() < 0.3:
      content = content[: draw.randrange(len(content))]
  return name, content


def _words(text):
  return set(re.findall(r"\w+", re.sub(r'\\+[ntr"]', " ", text)))


def _leaves(value, aside=()):
  """The texts of a value, those inside of JSON text too."""
  if isinstance(value, str):
    inner = value
    if value.lstrip()[:1] in ("{", "["):
      try:
        inner = json.loads(value)
      except (ValueError, RecursionError):
        pass
    if isinstance(inner, str):
      yield value
    else:
      yield from _leaves(inner, aside)
  elif isinstance(value, (list, tuple)):
    for element in value:
      yield from _leaves(element, aside)
  elif isinstance(value, dict):
    for key, found in value.items():
      if key not in aside:
        yield from _leaves(found, aside)


def _said(trajectory):
  """The words that a model would read or write, but for system prompts."""
  words = set()
  for m in trajectory.messages:
    if m.role != "system":
      words |= _words(f"{m.content} {m.reasoning or ''}")
      for call in m.tool_calls:
        words |= _words(f"{call.name} {call.arguments}")
        words |= set().union(*map(_words, _leaves(call.arguments)))
  return words


def _in_file(rows):
  return _words(json.dumps(rows, ensure_ascii=False)).union(
    *map(_words, _leaves(rows))
  )


def _check_whole(path):
  """A chat row is imported with all of its content, or named."""
  file = files.open_file(path, path.name, importers._is_row)
  rows = list(file.rows())
  items = list(importers.import_path(path))
  made = [i for i in items if isinstance(i, types.Trajectory)]
  named = {i.where for i in items if isinstance(i, importers.Skip)}
  if importers.detect(path) not in _LOGS:
    assert len(made) + len(named) >= len(rows) or None in named
  if not made or not made[0].source.startswith("openai:"):
    return
  for place, row in rows:
    if isinstance(row, importers.Skip) or not openai.matches(row):
      continue
    built = chat.one_row(file, place, row, openai.trajectory)
    if isinstance(built, importers.Skip):
      continue
    if isinstance(row, dict):
      row = {k: v for k, v in row.items() if k not in openai._unread(row)}
      row = {k: v for k, v in row.items() if k not in known.COLUMNS}
      keys = (*openai._IDS, *openai._TASKS, *openai._SUCCESSES)
      row = {k: v for k, v in row.items() if k not in keys}
    wanted = set().union(*map(_words, _leaves(row, _ASIDE)))
    whole = _said(built) | _words(json.dumps(built.tools))
    whole |= set().union(*map(_words, _leaves(built.tools)))
    ids = {c.id for m in built.messages for c in m.tool_calls}
    for message in built.messages:
      whole |= _words(f"{message.content} {message.tool_call_id}")
    whole |= set().union(*(_words(str(i)) for i in ids))
    assert wanted - whole - _MARKUP == set()


def test_damaged_files(testdata, tmp_path):
  sources = [*_cases(testdata / "wild"), *_real(testdata / "data")]
  assert len(sources) > 60
  path = tmp_path / "whole.jsonl"
  own_words = []  # What a format says itself, as the name of its one tool.
  for _, rows in sources:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = importers.import_path(path)
    said = [_said(t) for t in made if isinstance(t, types.Trajectory)]
    own_words.append(set().union(*said) - _in_file(rows))
  kinds, imported, skipped = set(), 0, 0
  for seed in range(_COUNT):
    draw = random.Random(seed)
    which = draw.randrange(len(sources))
    name, rows = sources[which]
    rows = _mutated(rows, draw)
    name, content = _file(name, rows, draw)
    path = tmp_path / name
    path.write_bytes(content)
    items = list(importers.import_path(path))
    assert items, f"seed {seed}: nothing said of the file"
    for item in items:
      if isinstance(item, importers.Skip):
        skipped += 1
        assert item.reason and "\n" not in item.reason, f"seed {seed}"
        continue
      imported += 1
      kinds.add(item.source.partition(":")[0])
      strange = _said(item) - _in_file(rows) - own_words[which] - _OWN
      assert not strange, f"seed {seed}: {strange}"
      line = records.encode(records.trajectory_to_json(item))
      assert records.trajectory_from_json(json.loads(line)) == item
    try:
      _check_whole(path)
    except AssertionError as error:
      pytest.fail(f"seed {seed}: {name}: {error}")
    path.unlink()
  assert min(imported, skipped) > _COUNT // 10
  assert len(kinds) > 8
