"""metrics.jsonl goes on after a step, and says what it lacks."""

import json

import pytest

from pivotrl_jax import errors
from pivotrl_jax.train import metrics


def _rows(path):
  return [json.loads(x)["step"] for x in path.read_text().splitlines()]


def _write(workdir, after, steps):
  with metrics.MetricWriter(workdir) as writer:
    writer.start(after)
    for step in steps:
      writer.write(step, {"b": 1.0, "a": 2.0}, seconds=0.1)


def test_rows_after_the_step_and_a_torn_one_are_dropped(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  _write(tmp_path, 0, [1, 2, 3])
  assert path.read_text().startswith('{"step": 1, "a": 2.0, "b": 1.0}\n')
  with open(path, "a") as out:
    out.write('{"step": 4, "a"')
  _write(tmp_path, 2, [3, 4])
  assert _rows(path) == [1, 2, 3, 4]
  assert not caplog.records


def test_a_fork_begins_after_its_step(tmp_path, caplog):
  _write(tmp_path, 5, [6, 7])
  _write(tmp_path, 7, [8])
  assert _rows(tmp_path / "metrics.jsonl") == [6, 7, 8]
  assert not caplog.records


def test_missing_rows_are_said(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  _write(tmp_path, 0, [1, 2, 3])
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + lines[2])
  _write(tmp_path, 3, [])
  (record,) = caplog.records
  assert "rows of steps before 4 are missing" in record.getMessage()


def test_a_damaged_row_is_named(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(errors.InputError, match="metrics.jsonl:2"):
    _write(tmp_path, 3, [])


def test_rollouts_go_on_with_their_step(tmp_path):
  path = tmp_path / "rollouts.jsonl"
  with metrics.MetricWriter(tmp_path) as writer:
    writer.start(0)
    writer.write(1, {}, seconds=0.1)
  assert not path.exists()  # Where nothing is sampled.
  for after in (1, 2):
    with metrics.MetricWriter(tmp_path) as writer:
      writer.start(after)
      for step in (2, 3):
        if step > after:
          rows = [{"step": step, "text": "\ud800"}, {"step": step}]
          writer.write(step, {}, rows, seconds=0.1)
    with open(path, "a") as out:
      out.write('{"step": 4, "te')
  assert _rows_of(path, after=3) == [2, 2, 3, 3]


def _rows_of(path, after):
  with metrics.MetricWriter(path.parent) as writer:
    writer.start(after)
  return _rows(path)
