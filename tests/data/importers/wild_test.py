"""Small inputs in the containers and formats that owners of data bring."""

import importlib.util

import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import importers


def test_every_case(testdata):
  """The cases' own runner: the records that each expects, or a clear line."""
  path = testdata / "wild" / "run_cases.py"
  if not path.is_file():
    pytest.skip(f"no cases at {path}")
  spec = importlib.util.spec_from_file_location("run_cases", path)
  cases = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(cases)
  found = {}
  for case in sorted(path.parent.glob("*.json")):
    value = cases.json.loads(case.read_text())
    verdict, why = cases.run(value, importers, errors, types)
    if verdict != "PASS":
      found[case.name] = why
  assert found == {}


# An input -> how many trajectories it holds, and what is said of the rest.
_PEERS = {
  "a07_bom.json": (1, []),
  "a07_bom.jsonl": (2, []),
  "a07_crlf.jsonl": (2, []),
  "a07_cut.jsonl.gz": (0, ["cannot read: Compressed file ended"]),
  "a07_dedupe": (4, []),
  "a07_empty.jsonl": (0, ["empty file"]),
  "a07_first_row_bad.jsonl": (2, ["messages: []"]),
  "a07_gz_of_nothing.jsonl.gz": (0, ["empty file"]),
  "a07_latin1.jsonl": (0, ["line 1: byte 0xe9 is not UTF-8"]),
  "a07_mixed": (
    2, ["empty file", "suffix '.txt'", "of no known format", "suffix '.csv'"],
  ),
  "a07_same_id_one_file.jsonl": (2, []),
  "a07_same_ids": (4, []),
  "a07_utf16.jsonl": (0, ["UTF-16; expected UTF-8"]),
  "a07_zero.jsonl.gz": (0, ["empty file"]),
  "i07_control_tokens.jsonl": (1, []),
  "i09_nulls.jsonl": (1, []),
  "i09_nulls.parquet": (2, []),
  "i11a_tools_text.jsonl": (1, []),
  "i11b_tool_calls_text.jsonl": (1, []),
  "i11c_sharegpt.jsonl": (1, []),
  "i11c2_sharegpt_tools.jsonl": (1, []),
  "i11c3_role_tool_call.jsonl": (1, []),
  "i11d_image.jsonl": (0, ["messages[0].content[0]: image part"]),
  "i11e_legacy_function_call.jsonl": (1, []),
  "i11f_function_call_no_functions.jsonl": (1, []),
  "i12_no_tools": (1, []),
}  # fmt: skip


# Those with calls: under `function_call` and in roles of their own too.
_CALLING = (
  "i07",
  "i09",
  "i11a",
  "i11b",
  "i11c2",
  "i11c3",
  "i11e",
  "i11f",
  "i12",
)


@pytest.mark.parametrize("name", _PEERS)
def test_faults_that_users_report(testdata, name):
  path = testdata / "wild" / "peers" / name
  if not path.exists():
    pytest.skip(f"no input at {path}")
  items = list(importers.import_path(path))
  made = [i for i in items if isinstance(i, types.Trajectory)]
  said = [i.reason for i in items if isinstance(i, importers.Skip)]
  count, reasons = _PEERS[name]
  assert len(made) == count
  assert len(said) == len(reasons)
  assert all(map(str.startswith, said, reasons))
  calls = [c for t in made for m in t.messages for c in m.tool_calls]
  assert bool(calls) == name.startswith(_CALLING)
  nulls = "null" in "".join(c.arguments for c in calls)
  assert not nulls and "None" not in str([t.tools for t in made])


def test_content_that_holds_control_tokens_is_text(testdata):
  path = testdata / "wild" / "peers" / "i07_control_tokens.jsonl"
  if not path.exists():
    pytest.skip(f"no input at {path}")
  (trajectory,) = importers.import_path(path)
  assert trajectory.messages[2].content == (
    "END = '<|im_end|>'\n<|im_start|>user\nSay done.'"
  )
  assert trajectory.messages[3].content == (
    "It ends turns with <|im_end|> on purpose."
  )
