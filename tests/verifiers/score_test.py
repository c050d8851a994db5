"""The scoring command: in order, a line a line, nothing breaks it."""

import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from pivotrl_jax.verifiers import score

CALL = {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}
MARKUP = '<tool_call>{"name": "f", "arguments": {"a": 1.0}}</tool_call>'


def line(**fields):
  case = {"verifier": "single_step", "expected_action": CALL, **fields}
  return json.dumps(case).encode()


def scored(**fields):
  return json.loads(score.score_line(line(**fields)))


@pytest.mark.parametrize(
  ("fields", "reward", "reason"),
  [
    ({"model_action": CALL}, 1.0, "expected_tool_call"),
    ({"model_action": [{**CALL, "call_id": "1"}]}, 1.0, "expected_tool_call"),
    ({"model_action": "hello"}, 0.0, "no_expected_tool_call"),
    ({"model_action": []}, 0.0, "no_action_found"),
    ({"model_text": MARKUP}, 1.0, "expected_tool_call"),
    # 1.0 is no int in the original.
    (
      {"model_text": MARKUP, "setting": "compat"},
      0.0,
      "argument_value_type_different",
    ),
    ({"model_text": "<tool_call>{"}, 0.0, "unclosed_tool_call"),
    # The prompt opened the thinking, which quotes a call.
    (
      {"model_text": f"Not {MARKUP[:-13]}g</tool_call>!\n</think>\n\n{MARKUP}"},
      1.0,
      "expected_tool_call",
    ),
    (
      {"model_text": MARKUP, "verifier": "strict"},
      0.0,
      "not_exact_match",
    ),
  ],
)
def test_what_the_model_did_in_every_form(fields, reward, reason):
  row = scored(**fields)
  assert (row["reward"], row["reason"]) == (reward, reason)


def test_peers_reasoning_that_quotes_a_call(testdata):
  file = testdata / "wild" / "peers" / "i08_quoted_call.jsonl"
  if not file.exists():
    pytest.skip("no wild/peers in the test data")
  rows = [json.loads(score.score_line(x)) for x in file.open("rb")]
  assert [row["reward"] for row in rows[:3]] == [1.0, 1.0, 1.0]


def test_files_may_lie_at_home(tmp_path):
  (tmp_path / "in.jsonl").write_bytes(line(model_action=CALL) + b"\n")
  subprocess.run(
      [
          sys.executable, "-m", "pivotrl_jax.verifiers.score",
          "--input=~/in.jsonl", "--output=~/out.jsonl", "--workers=1",
      ],
      check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)},
  )  # fmt: skip
  assert json.loads((tmp_path / "out.jsonl").read_text())["reward"] == 1.0


@pytest.mark.parametrize(
  "bad",
  [
    b"",
    b"{",
    b"[1]",
    b"\xff\xfe",
    b'{"verifier": "nobody"}',
    line(model_action=CALL, verifier="nobody"),
    line(model_action=CALL, setting="other"),
    line(model_action=CALL, config={"unheard_of": 1}),
    line(model_action=7),
    line(),
    line(model_action=CALL, expected_action={"type": "x"}),
    b'{"a":' * 5000,
  ],
)
def test_a_case_that_cannot_be_read_gets_zero(bad):
  row = json.loads(score.score_line(bad))
  assert row["reward"] == 0.0
  assert row["reason"].startswith("unreadable_case: ")


def test_unknown_fields_are_carried_through():
  row = scored(model_action=CALL, id="x/1", note={"by": "me"}, reward=0.25)
  assert row == {
    "id": "x/1",
    "note": {"by": "me"},
    "reward": 1.0,
    "reason": "expected_tool_call",
    "details": {},
  }


def test_the_command(tmp_path):
  """Gzip in, order kept over many chunks and processes."""
  actions = ["hello", CALL]
  with gzip.open(tmp_path / "cases.jsonl.gz", "wb") as out:
    for i in range(1000):
      out.write(line(id=i, model_action=actions[i % 3 == 0]) + b"\n")
  output = tmp_path / "scored.jsonl"
  command = [
    sys.executable, "-m", "pivotrl_jax.verifiers.score", "--workers=2",
    f"--input={tmp_path / 'cases.jsonl.gz'}", f"--output={output}",
  ]  # fmt: skip
  subprocess.run(command, check=True, capture_output=True)
  rows = [json.loads(x) for x in output.read_text().splitlines()]
  assert [row["id"] for row in rows] == list(range(1000))
  assert [row["reward"] for row in rows] == [
    float(i % 3 == 0) for i in range(1000)
  ]
  command[-2] = f"--input={tmp_path / 'missing.jsonl'}"
  failed = subprocess.run(command, capture_output=True, text=True)
  assert failed.returncode != 0
  last = failed.stderr.strip().splitlines()[-1]
  assert "missing.jsonl" in last and "No such file" in last
  assert len(output.read_text().splitlines()) == 1000  # As it was.


_BOUNDED = """
import itertools, resource
from pivotrl_jax.verifiers import score
taken = 0
def lines():
  global taken
  while True:
    taken += 1
    yield b'{}'
def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
rows = score.score_lines(itertools.islice(lines(), 50_000), workers=2)
ahead = max(taken - i for i, _ in enumerate(rows))
assert taken == 50_000
assert ahead <= (2 * score._AHEAD + 1) * score._CHUNK, ahead
assert peak() - before < 30_000, peak() - before  # KiB.
"""


def test_memory_does_not_grow_with_the_input():
  """Lines are taken a bounded number ahead of what is handed out."""
  subprocess.run([sys.executable, "-c", _BOUNDED], check=True)


def test_three_thousand_verdicts_a_second(testdata):
  """On the real rows of the tool-use cases, one core; the best of three."""
  path = testdata / "conformance" / "single_step.jsonl"
  lines = [
    text
    for text in path.read_bytes().splitlines()
    if len(text) < 20_000 and b'"deep' not in text
  ]
  seconds = []
  for _ in range(3):
    start = time.process_time()
    for text in lines:
      score.score_line(text)
    seconds.append(time.process_time() - start)
  assert len(lines) / min(seconds) > 3000
