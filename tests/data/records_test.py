"""Artifacts survive what logs contain and what kills a run."""

import gzip
import json
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records

# Any text of a log, lone surrogates and control characters included.
_TEXT = st.text(st.characters(blacklist_categories=()), max_size=8)
_CALLS = st.builds(
  types.ToolCall, name=_TEXT, arguments=_TEXT, id=st.none() | _TEXT
)
_PLAIN = st.builds(
  types.Message,
  role=st.sampled_from(types.ROLES),
  content=_TEXT,
  reasoning=st.none() | _TEXT,
  tool_calls=st.lists(_CALLS, max_size=2).map(tuple),
  tool_call_id=st.none() | _TEXT,
  context=st.booleans(),
)
_MESSAGES = st.builds(
  lambda m, p: types.dataclasses.replace(m, prompt=p),
  _PLAIN,
  st.none() | st.lists(_PLAIN, max_size=2).map(tuple),
)
_TRAJECTORIES = st.builds(
  types.Trajectory,
  id=_TEXT,
  domain=st.sampled_from(types.DOMAINS),
  source=_TEXT,
  task_id=_TEXT,
  reward=st.none() | st.floats(0, 1),
  success=st.none() | st.booleans(),
  tools=st.just(({"type": "function", "function": {"name": "f"}},)),
  messages=st.lists(_MESSAGES, max_size=3).map(tuple),
  extra=st.dictionaries(_TEXT, st.integers() | _TEXT, max_size=2),
)


@given(_TRAJECTORIES)
def test_trajectory_survives_json(trajectory):
  line = records.encode(records.trajectory_to_json(trajectory))
  assert line.isascii()
  assert records.trajectory_from_json(json.loads(line)) == trajectory


def test_defaults_are_left_out():
  message = types.Message("assistant", "hi")
  assert records.message_to_json(message) == {
    "role": "assistant",
    "content": "hi",
  }
  trajectory = types.Trajectory(
    "t", "swe", "s", "k", None, None, (), (message,)
  )
  assert set(records.trajectory_to_json(trajectory)) == {
      "id", "domain", "source", "task_id", "reward", "success", "tools",
      "messages",
  }  # fmt: skip


def test_candidate_profile_and_pivot_survive_json(tmp_path):
  candidate = types.Candidate(
    "t/1", "t", 1, 3, 4, types.Action("message", content="x")
  )
  # Rewards 1, 0: mean 1/2, population variance 1/4.
  profile = types.Profile(
    "t/1", "abc", 2, (1.0, 0.0), ("ok", "no"), 0.5, 0.25, ("a", "\ud800")
  )
  silent = types.Profile(
    "t/1", "abc", 2, (None, None), ("ok", "no"), None, None, ("a", "b")
  )
  pivot = types.Pivot("t/1", 0.5, 0.25, "difficult")
  path = tmp_path / "rows.jsonl"
  for value, to_json, read in (
    (candidate, records.candidate_to_json, records.read_candidates),
    (profile, records.profile_to_json, records.read_profiles),
    (silent, records.profile_to_json, records.read_profiles),
    (pivot, records.pivot_to_json, records.read_pivots),
  ):
    records.write_jsonl(path, [to_json(value)])
    assert list(read(path)) == [value]


def test_nan_survives(tmp_path):
  path = tmp_path / "rows.jsonl"
  records.write_jsonl(path, [{"x": math.nan, "y": math.inf}])
  ((number, row),) = records.read_jsonl(path)
  assert number == 1
  assert math.isnan(row["x"])
  assert row["y"] == math.inf


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ('{"a": 1}\n{"a": \n{"a": 2}\n', "rows.jsonl:2: not JSON"),
    ('{"a": 1}\n{"a"', "rows.jsonl:2: truncated last line? not JSON"),
    ('{"a": 1}\n\n[1]\n', "rows.jsonl:3: list; expected a JSON object"),
    ("[" * 100_000, "rows.jsonl:1: truncated last line? not JSON"),
    ('{"a": ' + "9" * 5000 + "}\n", "rows.jsonl:1: not JSON"),
  ],
)
def test_bad_lines_are_named(tmp_path, text, wanted):
  path = tmp_path / "rows.jsonl"
  path.write_text(text)
  with pytest.raises(errors.InputError, match="rows.jsonl") as raised:
    list(records.read_jsonl(path))
  assert wanted in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("change", "wanted"),
  [
    ({"id": 3}, ":1.id: 3; expected str"),
    ({"turn": True}, ":1.turn: True; expected int"),
    ({"demonstration": {"type": "dance"}}, "demonstration.type: 'dance'"),
    ({"demonstration": None}, ":1.demonstration: None; expected dict"),
  ],
)
def test_bad_fields_are_named(tmp_path, change, wanted):
  path = tmp_path / "candidates.jsonl"
  action = types.Action("message", content="x")
  good = records.candidate_to_json(types.Candidate("t/0", "t", 0, 1, 1, action))
  records.write_jsonl(path, [{**good, **change}])
  with pytest.raises(errors.InputError) as raised:
    list(records.read_candidates(path))
  assert wanted in str(raised.value)


def test_missing_file_and_torn_gzip_are_input_errors(tmp_path):
  with pytest.raises(errors.InputError, match="cannot read"):
    list(records.read_jsonl(tmp_path / "none.jsonl"))
  torn = tmp_path / "rows.jsonl.gz"
  whole = gzip.compress(b'{"a": 1}\n' * 1000)
  torn.write_bytes(whole)
  assert sum(1 for _ in records.read_jsonl(torn)) == 1000
  torn.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(errors.InputError, match="cannot read"):
    list(records.read_jsonl(torn))


def test_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / "rows.jsonl"
  records.write_jsonl(path, [{"a": 1}])

  def broken():
    yield {"a": 2}
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError):
    records.write_jsonl(path, broken())
  assert path.read_text() == '{"a": 1}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_unwritable_folder_is_an_input_error(tmp_path):
  with pytest.raises(errors.InputError, match="cannot write"):
    records.write_jsonl(tmp_path / "none" / "rows.jsonl", [])
  with pytest.raises(errors.InputError, match="cannot write"):
    records.Appender(tmp_path / "none" / "rows.jsonl")


def test_appender_goes_on_after_any_cut(tmp_path):
  """Cut at every byte, gone on from the whole rows: the same bytes."""
  path = tmp_path / "rows.jsonl"
  partial = tmp_path / "rows.jsonl.partial"
  wanted = [{"n": n, "text": "é" * n} for n in range(3)]
  with records.Appender(path) as out:
    out.append(wanted)
    assert not path.exists()
    out.finish()
  whole = path.read_bytes()
  for cut in range(len(whole) + 1):
    path.unlink()
    partial.write_bytes(whole[:cut])
    with records.Appender(path) as out:
      done = list(out.rows)
      assert done == wanted[: len(done)]
      out.append(wanted[len(done) :])
      assert list(out.rows) == wanted
      out.finish()
    assert path.read_bytes() == whole
    assert not partial.exists()


def test_appender_without_finish_keeps_the_partial(tmp_path):
  path = tmp_path / "rows.jsonl"
  with records.Appender(path) as out:
    out.append([{"a": 1}])
  assert not path.exists()
  with records.Appender(path) as out:
    assert list(out.rows) == [{"a": 1}]


def test_each_stage_rewrites_its_own_skips(tmp_path):
  records.replace_skipped(tmp_path, "profile", [{"id": "p", "reason": "long"}])
  records.replace_skipped(tmp_path, "import", [{"file": "f", "reason": "bad"}])
  records.replace_skipped(tmp_path, "profile", [{"id": "q", "reason": "long"}])
  rows = [row for _, row in records.read_jsonl(tmp_path / "skipped.jsonl")]
  assert [(r["stage"], r.get("id")) for r in rows] == [
    ("import", None),
    ("profile", "q"),
  ]
