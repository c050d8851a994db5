"""Files -> rows: every container, and what is wrong with one."""

import gzip
import json
import logging

import ml_collections
import pytest

from configs import common
from pivotrl_jax import config_check
from pivotrl_jax import errors
from pivotrl_jax.data import importers
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import __main__ as table

pyarrow = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
parquet = pytest.importorskip("pyarrow.parquet")


def _row(question, answer="a", **columns):
  return {
    "messages": [
      {"role": "user", "content": question},
      {"role": "assistant", "content": answer},
    ],
    **columns,
  }


_ROWS = [_row("q1 é", "a1"), _row("q2", "a2", id=0), _row("q3", "a3")]


def _lines(rows, end="\n"):
  return "".join(json.dumps(r) + end for r in rows).encode()


def _zstd(data):
  return pyarrow.compress(data, codec="zstd", asbytes=True)


def _table(rows):
  """A table has every column in every row."""
  columns = dict.fromkeys(key for row in rows for key in row)
  return pyarrow.Table.from_pylist([{**columns, **row} for row in rows])


def _stream(rows, opener):
  batch = _table(rows)
  sink = pyarrow.BufferOutputStream()
  with opener(sink, batch.schema) as writer:
    writer.write_table(batch)
  return sink.getvalue().to_pybytes()


def _parquet(rows):
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(_table(rows), sink)
  return sink.getvalue().to_pybytes()


_BOM = b"\xef\xbb\xbf"
# Name of a file with `_ROWS` in it -> its bytes.
_CONTAINERS = {
  "rows.jsonl": _lines(_ROWS),
  "rows.ndjson": _lines(_ROWS),
  "lines.json": _lines(_ROWS),
  "list.json": json.dumps(_ROWS).encode(),
  "pretty.json": json.dumps(_ROWS, indent=1).encode(),
  "pretty.jsonl": json.dumps(_ROWS, indent=1).encode(),
  "data.json": json.dumps({"data": _ROWS, "version": "1"}).encode(),
  "hub.json": json.dumps(
    {
      "features": [{"name": "messages"}],
      "rows": [
        {"row_idx": i, "row": row, "truncated_cells": []}
        for i, row in enumerate(_ROWS)
      ],
    }
  ).encode(),
  "crlf.jsonl": _lines(_ROWS, "\r\n"),
  "bom.jsonl": _BOM + _lines(_ROWS),
  "boms.jsonl": b"".join(_BOM + _lines([r]) for r in _ROWS),
  "bom.json": _BOM + json.dumps(_ROWS).encode(),
  "utf8.jsonl": "".join(
    json.dumps(r, ensure_ascii=False) + "\n" for r in _ROWS
  ).encode(),
  "rows.jsonl.gz": gzip.compress(_lines(_ROWS)),
  "parts.jsonl.gz": b"".join(gzip.compress(_lines([r])) for r in _ROWS),
  "rows.jsonl.zst": _zstd(_lines(_ROWS)),
  "parts.jsonl.zst": b"".join(_zstd(_lines([r])) for r in _ROWS),
  "list.json.zst": _zstd(json.dumps(_ROWS).encode()),
  "rows.parquet": _parquet(_ROWS),
  "rows.arrow": _stream(_ROWS, ipc.new_file),
  "stream.arrow": _stream(_ROWS, ipc.new_stream),
  "rows.feather": _stream(_ROWS, ipc.new_file),
  "text.jsonl": _lines(
    {**row, "messages": json.dumps(row["messages"])} for row in _ROWS
  ),
}


def _imported(path, format_name="auto"):
  items = list(importers.import_path(path, format_name))
  skips = [i for i in items if isinstance(i, importers.Skip)]
  return [i for i in items if not isinstance(i, importers.Skip)], skips


def _write(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder


@pytest.mark.parametrize("name", _CONTAINERS)
def test_the_same_rows_are_the_same_trajectories(tmp_path, name):
  _write(tmp_path, {name: _CONTAINERS[name]})
  found, skips = _imported(tmp_path / name)
  stem = name.split(".")[0]
  assert skips == []
  assert [t.id for t in found] == [f"{stem}:1", f"{stem}:0", f"{stem}:3"]
  said = [[m.content for m in t.messages] for t in found]
  assert said == [["q1 é", "a1"], ["q2", "a2"], ["q3", "a3"]]


def test_blank_lines_are_no_rows_but_count(tmp_path):
  _write(tmp_path, {"a.jsonl": b"\n" + _lines(_ROWS[:1]) + b" \r\n\n"})
  (trajectory,), skips = _imported(tmp_path)
  assert (trajectory.id, skips) == ("a:2", [])


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
_GOOD = _lines([_row("good")])
# Name of a bad file -> its bytes, and what is said of it.
_BAD = {
  "empty.jsonl": (b"", "empty file"),
  "blank.json": (b" \n\n", "empty file"),
  "zero.jsonl.gz": (b"", "empty file"),
  "nothing.jsonl.gz": (gzip.compress(b""), "empty file"),
  "list.json": (b"[]", "an empty list"),
  "pointer.json": (_LFS, "a Git LFS pointer"),
  "pointer.parquet": (_LFS, "a Git LFS pointer"),
  "utf16.jsonl": (_GOOD.decode().encode("utf-16"), "UTF-16; expected UTF-8"),
  "utf16le.jsonl": (_GOOD.decode().encode("utf-16-le"), "expected UTF-8"),
  "latin1.jsonl": (
    json.dumps(_row("é"), ensure_ascii=False).encode("latin-1") + b"\n" + _GOOD,
    "line 1: byte 0xe9 is not UTF-8; expected UTF-8",
  ),
  "cut.jsonl.gz": (gzip.compress(_GOOD)[:-20], "cannot read: Compressed file"),
  "cut.jsonl.zst": (_zstd(_GOOD)[:-5], "cannot read: Truncated compressed"),
  "cut.parquet": (_parquet(_ROWS)[:99], "cannot read after row 0: "),
  "cut.arrow": (b"ARROW1", "cannot read after row 0: "),
  "text.arrow": (b"{}", "expected parquet or Arrow"),
  "text.jsonl.zst": (b"(zst)", "not JSON"),
  "broken.json": (b'{"messages": [', "not JSON"),
  "other.json": (
    b'{"rows": 2, "x": 1}',
    "of no known format; found an object with the keys rows, x; expected a",
  ),
  "numbers.jsonl": (b"1\n2\n", "of no known format; found 1; expected a chat"),
  "table.csv": (b"a,b\n1,2\n", "suffix '.csv'; expected one of .json"),
  "log.eval": (b"PK\x03\x04", "suffix '.eval'; expected one of .json"),
  "zip.json": (b"PK\x03\x04", "a zip archive"),
  "notes.txt": (b"hello", "suffix '.txt'; expected one of .json"),
  "a.jsonl.bak": (_GOOD, "suffix '.bak'; expected one of .json"),
  "._a.jsonl": (b"\x00\x05\x16\x07", "a hidden file"),
  ".ipynb_checkpoints/a-checkpoint.jsonl": (_GOOD, "a hidden file"),
  "__MACOSX/._a.json": (b"\x00\x05\x16\x07", "a hidden file"),
}


@pytest.mark.parametrize("name", _BAD)
def test_a_bad_file_costs_itself(tmp_path, name):
  content, reason = _BAD[name]
  _write(tmp_path, {"a.jsonl": _GOOD, name: content, "z.jsonl": _GOOD})
  (trajectory,), skips = _imported(tmp_path)
  assert trajectory.messages[0].content == "good"
  (skip,) = [s for s in skips if s.file == name]
  assert reason in skip.reason and "\n" not in skip.reason
  # What two files hold counts once; the second is named too.
  assert [s.file for s in skips if s is not skip] == ["z.jsonl"]


def test_documents_and_side_files_are_passed_over(tmp_path):
  files = dict.fromkeys(
    ("README.md", "LICENSE", "dataset_info.json", ".git/HEAD"), b"x"
  )
  _write(tmp_path, {**files, "a.jsonl": _GOOD})
  found, skips = _imported(tmp_path)
  assert (len(found), skips) == (1, [])


# Lines among which the second is bad -> where, and what is said.
_BAD_LINES = {
  "torn": (b'{"messages": [{"ro', "truncated last line? not JSON"),
  "no json": (b"{]\n", "not JSON"),
  "no object": (b"7\n", "7; expected a row of openai"),
  "no messages": (b'{"messages": []}\n', "messages: []; expected a list"),
  "other": (b'{"x": 1}\n', "an object with the keys x; expected a row of"),
  "not utf-8": (b'{"a": "\xff"}\n', "not JSON: 'utf-8' codec can't decode"),
  "deep": (b"[" * 9999 + b"\n", "not JSON: maximum recursion depth"),
}


@pytest.mark.parametrize("name", _BAD_LINES)
def test_a_bad_row_costs_itself(tmp_path, name):
  bad, reason = _BAD_LINES[name]
  first = json.dumps(_row("é"), ensure_ascii=False).encode() + b"\n"
  after = b"" if name == "torn" else _GOOD
  _write(tmp_path, {"a.jsonl": first + bad + after})
  found, (skip,) = _imported(tmp_path / "a.jsonl")
  assert len(found) == (1 if name == "torn" else 2)
  assert (skip.file, skip.where) == ("a.jsonl", "2")
  assert reason in skip.reason


@pytest.mark.parametrize(
  "first", [b'{"messages": []}\n', b'{"created": "now", "rows": 1}\n', b"{]\n"]
)
def test_a_header_or_a_bad_first_row_costs_itself(tmp_path, first):
  _write(tmp_path, {"a.jsonl": first + _GOOD + _lines(_ROWS)})
  found, (skip,) = _imported(tmp_path)
  assert len(found) == 4
  assert skip.where == "1"


def test_a_row_of_another_format_is_named(tmp_path):
  odd = {"prompt_str": "user\nq\nassistant\n", "response_str": "a"}
  _write(tmp_path, {"a.jsonl": _GOOD + _lines([odd])})
  found, (skip,) = _imported(tmp_path)
  assert len(found) == 1
  assert skip.reason.startswith("of format mirorl; expected a row of openai")


def test_cells_that_a_viewer_cut_are_no_rows(tmp_path):
  rows = [{"row_idx": 0, "row": _row("q"), "truncated_cells": ["messages"]}]
  rows.append({"row_idx": 1, "row": _row("r"), "truncated_cells": []})
  _write(tmp_path, {"a.json": json.dumps({"rows": rows}).encode()})
  (found,), (skip,) = _imported(tmp_path)
  assert found.messages[0].content == "r"
  assert (skip.where, skip.reason) == ("1", "truncated_cells: ['messages']")


def test_content_beside_the_rows_is_not_dropped(tmp_path):
  value = {"tools": [{"name": "f"}], "data": [_row("q")]}
  _write(tmp_path, {"a.json": json.dumps(value).encode()})
  found, (skip,) = _imported(tmp_path)
  assert not found
  assert skip.reason.startswith("file.tools: ")


def test_columns_that_are_not_read_are_named_once_a_file(tmp_path):
  rows = [_row("q", stats={"a": 1}, model="m", empty=None), _row("r", note="n")]
  _write(tmp_path, {"a.jsonl": _lines(rows)})
  found, (skip,) = _imported(tmp_path)
  assert len(found) == 2
  assert (skip.where, skip.reason) == (None, "columns not read: stats, note")


def test_users_count_when_sameness_is_judged(tmp_path):
  """Only a second file's row that asks and answers the same is a copy."""
  shards = [[_row("Is 3 prime?", "yes")] * 2, [_row("Is 7 prime?", "yes")]]
  shards[1].append(_row("Is 3 prime?", "yes"))
  _write(
    tmp_path, {f"{i}.jsonl": _lines(rows) for i, rows in enumerate(shards)}
  )
  found, (skip,) = _imported(tmp_path)
  assert [t.id for t in found] == ["0:1", "0:2", "1:1"]
  assert (skip.where, skip.reason) == ("1:2", "the same turns are in 0.jsonl")


def test_equal_ids_stay_apart(tmp_path):
  rows = [_row("q1", id="t"), _row("q2", id="t")]
  more = [_row("q3", id="t")]
  _write(tmp_path, {"a/r.jsonl": _lines(rows), "b/r.jsonl": _lines(more)})
  found, _ = _imported(tmp_path)
  assert [t.id for t in found] == ["a/r:t", "a/r:t#2", "b/r:t"]


def _calling(name, **columns):
  call = {"id": "c", "function": {"name": name, "arguments": "{}"}}
  turn = {"role": "assistant", "content": None, "tool_calls": [call]}
  return {"messages": [{"role": "user", "content": name}, turn], **columns}


def _config(path, tools=""):
  data = {"format": "auto", "path": str(path), "trajectories": 0}
  return ml_collections.ConfigDict(
    {"domain": "tau", "seed": 0, "data": {**data, "tools": str(tools)}}
  )


def test_calls_without_a_schema_are_counted_and_a_file_gives_them(
  tmp_path, caplog
):
  own = [{"name": "f", "parameters": {"type": "object"}}]
  rows = [_calling("f"), _calling("g"), _calling("f", tools=own), _row("q")]
  _write(tmp_path, {"rows.jsonl": _lines(rows)})
  with caplog.at_level(logging.WARNING):
    importers.run(_config(tmp_path / "rows.jsonl"), tmp_path)
  (warning,) = [r.getMessage() for r in caplog.records]
  assert warning.startswith(
    "import: 2 of 4 trajectories call tools that they do not describe (f, g);"
    " --config.data.tools=FILE"
  )
  schemas = tmp_path / "schemas.json"
  schemas.write_text('[{"name": "f"}, {"name": "g"}]')
  caplog.clear()
  importers.run(_config(tmp_path / "rows.jsonl", schemas), tmp_path)
  assert not caplog.records
  found = list(records.read_trajectories(tmp_path / "trajectories.jsonl"))
  assert [len(t.tools) for t in found] == [2, 2, 1, 2]


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    (None, "schemas.json: cannot read: No such file"),
    ("{", "schemas.json: not JSON"),
    ('"f"', "schemas.json: 'f'; expected a list"),
    ("[{}]", "schemas.json[0].name: missing; expected str"),
  ],
)
def test_schemas_are_checked_before_any_work(tmp_path, text, wanted):
  path = tmp_path / "schemas.json"
  if text is not None:
    path.write_text(text)
  config = common.base("swe", "tiny")
  config.data.format = "world"
  config.data.tools = str(path)
  with pytest.raises(errors.InputError) as raised:
    config_check.check(config)
  assert wanted in str(raised.value)


def test_a_folder_of_nothing_is_one_line(tmp_path, capsys):
  folder = _write(tmp_path / "data", {"a.jsonl": b"", "README.md": b""})
  with pytest.raises(errors.InputError) as raised:
    importers.run(_config(folder), tmp_path)
  assert "no trajectory imported (empty file)" in str(raised.value)
  assert table.main([str(folder)]) == 0
  assert "left out: 1 x empty file" in capsys.readouterr().out
