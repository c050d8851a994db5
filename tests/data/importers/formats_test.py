"""Every format, worked by hand on its smallest row; then what breaks it."""

import copy
import gzip
import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_collections
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import importers
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import files

_SYSTEM = {"role": "system", "content": "sys"}
_USER = {"role": "user", "content": "q"}
_NESTED_CALL = {
  "id": "c1",
  "type": "function",
  "function": {"name": "f", "arguments": '{"a": 1}'},
}
_FLAT_TOOL = {"type": "function", "name": "f", "parameters": {}}
_REPLY = '{"analysis": "a", "plan": "p", "commands": [{"keystrokes": "ls"}]}'
_TOOLS_BLOCK = (
  'Use tools.\n<tools>\n{"name": "search", "parameters": {}}\n</tools>\n'
  "format ... \nUser: q"
)
_MCP = (
  "<think>why</think>\n\n<use_mcp_tool>\n<server_name>s</server_name>\n"
  "<tool_name>f</tool_name>\n<arguments>\n"
  '{"a": 1}\n</arguments>\n</use_mcp_tool>'
)
_XML = (
  "why\n\n<function=f>\n<parameter=a>1</parameter>\n"
  "<parameter=b>\nx\ny\n</parameter>\n</function>"
)
_XML_SYSTEM = (
  "sys\n\nYou have access to the following functions:\n\n"
  "---- BEGIN FUNCTION #1: f ----\nDescription: does f\n\nParameters:\n"
  "  (1) a (integer, required): the a\n  (2) b (string, optional): the b\n"
  "---- END FUNCTION #1 ----\n"
)

# Format -> (a row or document, the assistant turn it has).
_WANTED_CALL = types.ToolCall("f", '{"a": 1}', "c1")
_ROWS = {
  "openai": (
    {
      "messages": [
        _SYSTEM,
        _USER,
        {
          "role": "assistant",
          "content": "<think>why</think>\ntext",
          "tool_calls": [_NESTED_CALL],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
      ],
      "tools": [_FLAT_TOOL],
    },
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "tau2": (
    {
      "info": {
        "git_commit": "b02b5093",
        "agent_info": {"implementation": "llm_agent"},
        "environment_info": {"domain_name": "d", "policy": "p"},
      },
      "tasks": [{"id": "1"}],
      "simulations": [
        {
          "id": "s1",
          "task_id": "1",
          "reward_info": {"reward": 1.0},
          "messages": [
            {"role": "assistant", "content": "Hi!"},
            _USER,
            {
              "role": "assistant",
              "content": None,
              "tool_calls": [{"id": "c1", "name": "f", "arguments": {"a": 1}}],
            },
            {
              "role": "tool",
              "id": "c1",
              "requestor": "assistant",
              "content": "1",
            },
            {
              "role": "user",
              "content": None,
              "tool_calls": [{"name": "phone"}],
            },
            {
              "role": "tool",
              "id": "u1",
              "requestor": "user",
              "content": "hidden",
            },
          ],
        }
      ],
    },
    types.Message("assistant", tool_calls=(_WANTED_CALL,)),
  ),
  "tau_bench": (
    {
      "task_id": 1,
      "trial": 0,
      "reward": 0.0,
      "traj": [
        _SYSTEM,
        _USER,
        {"role": "assistant", "content": None, "tool_calls": [_NESTED_CALL]},
      ],
    },
    types.Message("assistant", tool_calls=(_WANTED_CALL,)),
  ),
  "mini_swe_agent": (
    {
      "trajectory_format": "mini-swe-agent-1.1",
      "instance_id": "i",
      "messages": [
        _SYSTEM,
        _USER,
        {
          "role": "assistant",
          "content": "text",
          "reasoning_content": "why",
          "tool_calls": [_NESTED_CALL],
          "extra": {"response": {}},
        },
        {"role": "exit", "content": ""},
      ],
    },
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "openhands": (
    {
      "messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]}
      ],
      "response": {
        "choices": [
          {
            "message": {
              "role": "assistant",
              "content": None,
              "tool_calls": [_NESTED_CALL],
            }
          }
        ]
      },
      "kwargs": {"tools": [_FLAT_TOOL]},
    },
    types.Message("assistant", tool_calls=(_WANTED_CALL,)),
  ),
  "claude_code": (
    [
      {
        "type": "user",
        "uuid": "a",
        "parentUuid": None,
        "sessionId": "s",
        "message": {"role": "user", "content": "q"},
      },
      {
        "type": "assistant",
        "uuid": "b",
        "parentUuid": "a",
        "sessionId": "s",
        "message": {
          "id": "m",
          "role": "assistant",
          "content": [
            {"type": "thinking", "thinking": "why"},
            {"type": "text", "text": "text"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
          ],
        },
      },
      {
        "type": "user",
        "uuid": "c",
        "parentUuid": "b",
        "sessionId": "s",
        "message": {
          "role": "user",
          "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "1"}
          ],
        },
      },
    ],
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "codex": (
    [
      {
        "type": "session_meta",
        "payload": {"id": "s", "base_instructions": {"text": "sys"}},
      },
      *(
        {"type": "response_item", "payload": item}
        for item in (
          {"type": "message", "role": "user", "content": "q"},
          {"type": "reasoning", "summary": [{"text": "why"}]},
          {"type": "message", "role": "assistant", "content": "text"},
          {
            "type": "function_call",
            "call_id": "c1",
            "name": "f",
            "arguments": '{"a": 1}',
          },
          {"type": "function_call_output", "call_id": "c1", "output": "1"},
        )
      ),
    ],
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "openhands_events": (
    [
      {
        "kind": "MessageEvent",
        "source": "user",
        "llm_message": {"role": "user", "content": "q"},
      },
      {
        "kind": "ActionEvent",
        "source": "agent",
        "thought": [{"type": "text", "text": "text"}],
        "reasoning_content": "why",
        "tool_call_id": "c1",
        "tool_call": {"id": "c1", "name": "f", "arguments": '{"a": 1}'},
        "llm_response_id": "r",
      },
      {
        "kind": "ObservationEvent",
        "source": "environment",
        "tool_call_id": "c1",
        "observation": {"content": [{"type": "text", "text": "1"}]},
      },
    ],
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "responses": (
    {
      "input": "q",
      "output": [
        {"type": "message", "role": "assistant", "content": "text"},
        {
          "type": "function_call",
          "call_id": "c1",
          "name": "f",
          "arguments": '{"a": 1}',
        },
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
      ],
      "tools": [_FLAT_TOOL],
    },
    types.Message("assistant", "text", tool_calls=(_WANTED_CALL,)),
  ),
  "swe_agent": (
    {
      "history": [
        {**_SYSTEM, "agent": "main"},
        {**_USER, "agent": "main", "is_demo": True},
        {**_USER, "agent": "main"},
        {
          "role": "assistant",
          "agent": "main",
          "content": "look\n```\nls -a\n```",
          "thought": "look\n",
          "action": "ls -a\n",
        },
        {"role": "user", "agent": "main", "content": "x.py"},
      ]
    },
    types.Message(
      "assistant",
      "look",
      tool_calls=(
        types.ToolCall("bash", '{"command": "ls -a"}', "text_call_2"),
      ),
    ),
  ),
  "swe_smith": (
    {
      "instance_id": "i",
      "messages": [
        {"role": "system", "content": _XML_SYSTEM},
        _USER,
        {"role": "assistant", "content": _XML},
        {"role": "user", "content": "OBSERVATION:\n1"},
      ],
    },
    types.Message(
      "assistant",
      "why",
      tool_calls=(types.ToolCall("f", '{"a": 1, "b": "x\\ny"}', "call_2"),),
    ),
  ),
  "terminus": (
    {
      "responses_create_params": {"input": [_USER]},
      "expected_answer": _REPLY,
      "metadata": {"row_idx": 0, "turn_index": 1, "task": "t"},
    },
    types.Message("assistant", _REPLY),
  ),
  "atif": (
    {
      "schema_version": "ATIF-v1.6",
      "agent": {"name": "a"},
      "steps": [
        {"source": "user", "message": "q"},
        {
          "source": "agent",
          "message": "text",
          "reasoning_content": "why",
          "tool_calls": [
            {
              "tool_call_id": "c1",
              "function_name": "f",
              "arguments": {"a": 1},
            }
          ],
          "observation": {
            "results": [{"source_call_id": "c1", "content": "1"}]
          },
        },
      ],
    },
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
  "webdancer": (
    {
      "functions": [{"name_for_model": "search"}],
      "messages": [
        _SYSTEM,
        {"role": "user", "content": _TOOLS_BLOCK},
        {
          "role": "assistant",
          "content": "<think>\nwhy\n</think>\n<tool_call>\n"
          '{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        },
        {
          "role": "user",
          "content": "<tool_response>\n1\n</tool_response>",
        },
      ],
    },
    types.Message(
      "assistant",
      reasoning="why",
      tool_calls=(types.ToolCall("f", '{"a": 1}', "call_2"),),
    ),
  ),
  "mirorl": (
    {
      "prompt_str": "system\n\nsys\nuser\nq\nassistant\n",
      "response_str": f"{_MCP}\nuser\n1\nassistant\n<think>x</think>\n"
      "\\boxed{Bonnie}",
      "ground_truth": "bonnie",
    },
    types.Message(
      "assistant",
      reasoning="why",
      tool_calls=(types.ToolCall("f", '{"a": 1}', "call_2"),),
    ),
  ),
  "smolagents": (
    {
      "answer": "1,000",
      "true_answer": "1000",
      "intermediate_steps": [
        _SYSTEM,
        _USER,
        {"role": "assistant", "content": "Tool call c1: calling 'f'"},
        {
          "role": "tool-call",
          "content": "Calling tools:\n[{'id': 'c1', 'function':"
          " {'name': 'f', 'arguments': {'a': 1}}}]",
        },
        {"role": "tool-response", "content": "Observation:\n1"},
      ],
    },
    types.Message("assistant", tool_calls=(_WANTED_CALL,)),
  ),
  "nemo_gym_pivots": (
    {
      "responses_create_params": {
        "input": [_USER, {"role": "assistant", "content": "before"}],
        "tools": [_FLAT_TOOL],
      },
      "expected_action": {
        "type": "function_call",
        "name": "f",
        "arguments": '{"a": 1}',
      },
    },
    types.Message("assistant", tool_calls=(types.ToolCall("f", '{"a": 1}'),)),
  ),
  "nemo_gym_rollouts": (
    {
      "responses_create_params": {
        "instructions": "sys",
        "input": "q",
        "tools": [_FLAT_TOOL],
      },
      "response": {
        "output": [
          {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "why"}],
          },
          {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "text"}],
          },
          {
            "type": "function_call",
            "call_id": "c1",
            "name": "f",
            "arguments": '{"a": 1}',
          },
          {
            "type": "function_call_output",
            "call_id": "c1",
            "output": "1",
          },
        ]
      },
      "reward": 1.0,
    },
    types.Message(
      "assistant", "text", reasoning="why", tool_calls=(_WANTED_CALL,)
    ),
  ),
}


def _file(row, name="folder/rows.jsonl", beside=lambda name: None):
  return files.File(name, lambda: iter([(1, row)]), beside, "folder")


def _read(format_name, row):
  return list(importers.IMPORTERS[format_name][1](_file(row)))


def test_every_format_has_a_row_here():
  assert set(_ROWS) == set(importers.IMPORTERS)


@pytest.mark.parametrize("name", _ROWS)
def test_detected_alone(name):
  """The table's order decides: the first that matches is the row's own."""
  row, _ = _ROWS[name]
  matching = [
    n for n, (matches, _) in importers.IMPORTERS.items() if matches(row)
  ]
  assert matching[0] == name


@pytest.mark.parametrize("name", _ROWS)
def test_golden_turn(name):
  row, wanted = _ROWS[name]
  (trajectory,) = _read(name, row)
  turns = [
    m for m in trajectory.messages if m.role == "assistant" and not m.context
  ]
  assert turns[0] == wanted
  assert trajectory.source.startswith(f"{name}:")
  assert trajectory.id.startswith("folder/rows")


@pytest.mark.parametrize("name", _ROWS)
def test_reasoning_of_a_turn_is_in_no_content(name):
  """Thinking sits in its own field, never in a text or an argument."""
  (trajectory,) = _read(name, _ROWS[name][0])
  for message in trajectory.messages:
    assert "why" not in message.content or message.reasoning is None
    assert "<think>" not in message.content


@pytest.mark.parametrize("name", _ROWS)
def test_results_answer_their_calls(name):
  (trajectory,) = _read(name, _ROWS[name][0])
  calls = {c.id for m in trajectory.messages for c in m.tool_calls}
  answers = [m for m in trajectory.messages if m.role == "tool"]
  assert {m.tool_call_id for m in answers} <= calls


@pytest.mark.parametrize("name", _ROWS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_rows_are_skipped_with_a_reason(name, data):
  """Any value of the row replaced by any other: a record, never a crash."""
  row = copy.deepcopy(_ROWS[name][0])
  spot, key = data.draw(st.sampled_from(list(_spots(row))))
  junk = st.sampled_from(
    [None, 3, True, "", "x", [], {}, [None], [3], ["x"], {"a": 1}, [{}]]
  )
  if data.draw(st.booleans()):
    spot[key] = data.draw(junk)
  else:
    del spot[key]
  if not importers.IMPORTERS[name][0](row):
    return
  for item in _read(name, row):
    if isinstance(item, importers.Skip):
      assert item.reason
    else:
      line = records.encode(records.trajectory_to_json(item))
      assert records.trajectory_from_json(json.loads(line)) == item


def _spots(value):
  keys = range(len(value)) if isinstance(value, list) else list(value)
  for key in keys:
    yield value, key
    if isinstance(value[key], (dict, list)):
      yield from _spots(value[key])


def test_greeting_and_the_users_own_tools_are_not_turns():
  (trajectory,) = _read("tau2", _ROWS["tau2"][0])
  assert [(m.role, m.context) for m in trajectory.messages] == [
    ("system", False),
    ("assistant", True),
    ("user", False),
    ("assistant", False),
    ("tool", False),
  ]
  assert trajectory.success is True


def test_tau2_prompts_are_those_of_the_sft_rows(testdata):
  folder = testdata / "data" / "tau2_bench"
  sft = importers.import_path(folder / "sft_v1_small/sft-v1-small.json.gz")
  known = {(t.messages[0].content, json.dumps(t.tools)) for t in sft}
  for name in ("gpt-4.1_airline", "gpt-4.1_retail", "gpt-4.1_telecom"):
    path = folder / "results" / f"{name}.json.gz"
    for trajectory in importers.import_path(path):
      prompt = trajectory.messages[0].content
      assert (prompt, json.dumps(trajectory.tools)) in known


def test_solo_agents_hold_the_users_tools_and_see_the_ticket(testdata):
  path = testdata / "data/tau2_bench/results/gpt-4.1_telecom_no-user.json.gz"
  trajectory = next(importers.import_path(path))
  names = [t["function"]["name"] for t in trajectory.tools]
  assert names[-1] == "done"
  assert {"toggle_airplane_mode", "get_customer_by_phone"} <= set(names)
  assert trajectory.messages[0].content.endswith("\n</ticket>")
  assert trajectory.messages[-1].content != "###STOP###"


def test_replaced_observations_become_the_turns_prompt(testdata):
  """The last-5 history processor: from the sixth step on prompts differ."""
  path = (
    testdata / "data/swe_agent/replay__marshmallow-code__marshmallow-1867"
    "__function_calling_replace_from_source.traj.gz"
  )
  (trajectory,) = importers.import_path(path)
  turns = [m for m in trajectory.messages if m.role == "assistant"]
  assert [m.prompt is not None for m in turns] == [False] * 6 + [True] * 7
  assert (
    turns[8].prompt[3].content == "Old environment output: (7 lines omitted)"
  )
  assert turns[8].prompt[3].role == "tool"


def test_no_prompt_holds_its_own_turn(testdata):
  """A logged prompt may hold the reply it led to; that would be the label."""
  seen = 0
  for folder in ("swe_agent", "swe_smith", "harbor_atif"):
    for item in importers.import_path(testdata / "data" / folder):
      for i, m in enumerate(getattr(item, "messages", ())):
        if m.prompt is not None:
          seen += 1
          assert len(m.prompt) <= i
          assert m.prompt[-1].role != "assistant"
  # 7 of the last-5 history processor, 4 after a summary.
  assert seen == 11


def test_summarised_history_starts_anew(testdata):
  path = (
    testdata / "data/harbor_atif/terminus_2"
    "/hello-world-context-summarization.trajectory.json"
  )
  (trajectory,) = importers.import_path(path)
  turns = [m for m in trajectory.messages if m.role == "assistant"]
  assert [m.prompt is not None for m in turns] == [False] * 3 + [True] * 4
  assert turns[3].prompt[1].content.startswith("Here are the answers")
  assert len(turns[3].prompt) == 2


def _write(path, rows):
  text = "".join(json.dumps(row) + "\n" for row in rows).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def _config(**data):
  base = {"format": "auto", "path": "", "trajectories": 0, "tools": ""}
  filled = {**base, **data}
  return ml_collections.ConfigDict({
      "domain": "tau", "seed": 0, "data": filled
  })  # fmt: skip


def test_run_writes_what_it_takes_and_what_it_leaves(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  good, empty = _ROWS["openai"][0], {"messages": [_USER]}
  other = copy.deepcopy(good)
  other["messages"][2]["content"] = "another"
  _write(source / "a.jsonl.gz", [good, empty, good])
  _write(source / "b.jsonl", [good, other])
  (source / "tools.json").write_text("[]")
  (source / "README.md").write_text("no data")
  _write(source / "x.json", [{"unknown": 1}])
  workdir = tmp_path / "work"
  workdir.mkdir()
  importers.run(_config(path=str(source)), workdir)
  found = list(records.read_trajectories(workdir / "trajectories.jsonl"))
  # Equal rows of one file are two samples; a second file's are copies.
  assert [t.id for t in found] == ["a:1", "a:3", "b:2"]
  assert {t.domain for t in found} == {"tau"}
  skipped = [r for _, r in records.read_jsonl(workdir / "skipped.jsonl")]
  assert [(r["file"], r.get("id"), r["stage"]) for r in skipped] == [
    ("a.jsonl.gz", "2", "import"),
    ("b.jsonl", "b:1", "import"),
    ("x.json", None, "import"),
  ]
  importers.run(_config(path=str(source), trajectories=2), workdir)
  found = records.read_trajectories(workdir / "trajectories.jsonl")
  assert [t.id for t in found] == ["a:1", "a:3"]


def test_format_chooses_among_the_files_of_a_folder(tmp_path):
  _write(tmp_path / "a.jsonl", [_ROWS["openai"][0]])
  _write(tmp_path / "b.jsonl", [_ROWS["mirorl"][0]])
  taken, skip = importers.import_path(tmp_path, "openai")
  assert taken.id == "a:1"
  assert skip.file == "b.jsonl"
  assert skip.reason.startswith("not of data.format openai; found an object")


def test_detect(tmp_path):
  path = tmp_path / "a.jsonl"
  _write(path, [_ROWS["smolagents"][0]])
  assert importers.detect(path) == "smolagents"
  _write(path, [{"x": 1}])
  assert importers.detect(path) is None


@pytest.mark.parametrize(
  ("data", "wanted"),
  [
    ({"path": "none"}, "none: no such file or folder"),
    ({"path": ""}, "data.path: ''; expected"),
    ({"path": ".", "format": "tau3"}, "data.format: 'tau3'; expected"),
    ({"format": "world", "trajectories": 1}, "'tau' has no mini world"),
    ({"path": "empty"}, "no trajectory imported"),
    ({"path": "torn.jsonl"}, "no trajectory imported (truncated last line?"),
    ({"path": "rows.parquet"}, "rows.parquet: "),
  ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, data, wanted):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  whole = json.dumps(_ROWS["openai"][0])
  (tmp_path / "torn.jsonl").write_text(whole[:40])
  (tmp_path / "rows.parquet").write_bytes(b"PAR1")
  with pytest.raises(errors.InputError) as raised:
    importers.run(_config(**data), tmp_path)
  assert wanted in str(raised.value)
  assert "\n" not in str(raised.value)


def test_world_demonstrations_succeed(tmp_path):
  config = _config(format="world", trajectories=3)
  config.domain = "swe"
  importers.run(config, tmp_path)
  found = list(records.read_trajectories(tmp_path / "trajectories.jsonl"))
  assert len({t.id for t in found}) == 3
  assert all(t.success for t in found)


def test_parquet_rows_are_rows(tmp_path):
  """The same rows as JSON lines and as parquet give the same trajectories."""
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [
    {
      "messages": [
        {"role": "user", "content": f"question {i}"},
        {"role": "assistant", "content": f"answer {i}"},
      ]
    }
    for i in range(3)
  ]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
  (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  chats = [
    [t.messages for t in importers.import_path(tmp_path / name)]
    for name in ("a.parquet", "b.jsonl")
  ]
  assert len(chats[0]) == 3
  assert chats[0] == chats[1]


def _changed(name, change):
  row = copy.deepcopy(_ROWS[name][0])
  change(row)
  return row


def _add(row, key, text):
  row[key] += text


@pytest.mark.parametrize(
  ("name", "change", "content"),
  [
    # What stands behind a call, or around an answer, is not lost.
    (
      "webdancer",
      lambda row: _add(row["messages"][2], "content", "\nThen?"),
      "Then?",
    ),
    (
      "webdancer",
      lambda row: row["messages"][2].update(
        content="It is <answer>9</answer>, surely."
      ),
      "9\nIt is\n, surely.",
    ),
    (
      "mirorl",
      lambda row: row.update(response_str=f"Well.\n{_MCP[20:]}\nThen?"),
      "Well.\nThen?",
    ),
    (
      "smolagents",
      lambda row: row["intermediate_steps"][2].update(content="I look."),
      "I look.",
    ),
    # An entry without the agent's split keeps its text.
    (
      "swe_agent",
      lambda row: row["history"][3].pop("thought"),
      "look\n```\nls -a\n```",
    ),
  ],
)
def test_text_around_a_call_is_kept(name, change, content):
  (trajectory,) = _read(name, _changed(name, change))
  turns = [m for m in trajectory.messages if m.role == "assistant"]
  assert turns[0].content == content


@pytest.mark.parametrize(
  ("name", "change", "reason"),
  [
    (
      "webdancer",
      lambda row: _add(
        row["messages"][2], "content", row["messages"][2]["content"]
      ),
      "messages[2]: 2 calls in one reply; expected one",
    ),
    (
      "mirorl",
      lambda row: _add(row, "prompt_str", f"{_MCP}{_MCP}\nuser\nq\n"),
      "2 calls in one reply",
    ),
    (
      "mirorl",
      lambda row: row.update(prompt_str="Once " + row["prompt_str"]),
      "prompt_str: 'Once system",
    ),
    (
      "swe_smith",
      lambda row: _add(row["messages"][2], "content", f"\n{_XML[5:]}"),
      "2 calls in one reply",
    ),
    (
      "smolagents",
      lambda row: row["intermediate_steps"][1].update(images=["x"]),
      "intermediate_steps[1].images",
    ),
    (
      "nemo_gym_rollouts",
      lambda row: row.update(
        responses_create_params={"input": []},
        instance_config={"agent_kwargs": ["x"]},
      ),
      "instance_config.agent_kwargs: ['x']; expected dict",
    ),
    (
      "atif",
      lambda row: row["steps"][0].update(tool_calls=[{"a": 1}]),
      "steps[0].tool_calls",
    ),
    ("tau2", lambda row: row["info"].update(agent_info=3), "agent_info: 3"),
  ],
)
def test_what_no_record_would_hold_is_named(name, change, reason):
  (skip,) = _read(name, _changed(name, change))
  assert reason in skip.reason


@pytest.mark.parametrize(
  ("name", "change"),
  [
    (
      "webdancer",
      lambda row: row["messages"][2].update(content='<tool_call>\n{"name": '),
    ),
    (
      "swe_smith",
      lambda row: row["messages"].append(
        {"role": "assistant", "content": "<function=f>\n<param"}
      ),
    ),
    ("mirorl", lambda row: _add(row, "prompt_str", "<use_mcp_tool>\nuser\n")),
  ],
)
def test_a_call_that_is_cut_off_is_context(name, change):
  row = _changed(name, change)
  if "messages" in row:
    row["messages"].append({"role": "assistant", "content": "9"})
  (trajectory,) = _read(name, row)
  turns = [m for m in trajectory.messages if m.role == "assistant"]
  assert sum(m.context for m in turns) == 1
  assert not turns[-1].context


def test_a_turn_row_of_another_history_is_named():
  first = copy.deepcopy(_ROWS["terminus"][0])
  second = copy.deepcopy(first)
  second["responses_create_params"]["input"] += [
    {"role": "assistant", "content": "another reply"},
    {"role": "user", "content": "2"},
  ]
  rows = files.File("r.jsonl", lambda: iter([(1, first), (2, second)]))
  (skip,) = importers.IMPORTERS["terminus"][1](rows)
  assert "metadata.turn_index 1: another history" in skip.reason
  second["responses_create_params"]["input"][1]["content"] = _REPLY
  (found,) = importers.IMPORTERS["terminus"][1](rows)
  assert len(found.messages) == 4


def test_a_simulation_by_itself_knows_its_outcome():
  (simulation,) = copy.deepcopy(_ROWS["tau2"][0]["simulations"])
  # A user who speaks and acts is heard.
  simulation["messages"][4]["content"] = "One moment."
  (found,) = _read("tau2", simulation)
  assert [m.role for m in found.messages] == [
    "assistant", "user", "assistant", "tool", "user",
  ]  # fmt: skip
  assert (found.success, found.task_id) == (True, "1")
  assert not found.tools
