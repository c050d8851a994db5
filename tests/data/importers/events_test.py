"""Event logs: Claude Code, Codex, OpenHands; what they leave out is named."""

import copy
import json
import random

import pytest

from pivotrl_jax import types
from pivotrl_jax.data import importers
from pivotrl_jax.data import records


def _import(folder, files):
  """`(trajectories, skips)` of files, each a document or a list of lines."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl"):
      content = "".join(
        (x if isinstance(x, str) else json.dumps(x)) + "\n" for x in content
      )
    else:
      content = json.dumps(content)
    path.write_text(content)
  found, skips = [], []
  for item in importers.import_path(folder):
    (skips if isinstance(item, importers.Skip) else found).append(item)
  return found, skips


def _said(trajectory):
  """Each message in short: role, text, names of calls, `!` for context."""
  return [
    " ".join(
      [m.role + "!" * m.context, m.content, *(c.name for c in m.tool_calls)]
    ).strip()
    for m in trajectory.messages
  ]


def _reasons(skips):
  return [f"{s.file} {s.where}: {s.reason}" for s in skips]


def _event(uuid, parent, content, *, reply=None, **more):
  """A line of a Claude Code session; `reply` is the id of a model's message."""
  message = {"role": "user" if reply is None else "assistant"}
  if reply is not None:
    message = {**message, "id": reply, "model": "m", "usage": {"tokens": 1}}
  return {
    "type": message["role"],
    "uuid": uuid,
    "parentUuid": parent,
    "isSidechain": False,
    "sessionId": "s",
    "timestamp": "2026",
    "message": {**message, "content": content},
    **more,
  }


def _text(text):
  return [{"type": "text", "text": text}]


def _use(call_id, command="ls"):
  arguments = {"command": command}
  return [
    {"type": "tool_use", "id": call_id, "name": "Bash", "input": arguments}
  ]


def _result(call_id, text):
  return [{"type": "tool_result", "tool_use_id": call_id, "content": text}]


_CLAUDE = [
  {"type": "file-history-snapshot", "messageId": "a", "snapshot": {}},
  _event("a", None, "List it."),
  _event(
    "b",
    "a",
    [{"type": "thinking", "thinking": "Hm.", "signature": "x"}],
    reply="m1",
  ),
  _event("c", "b", _use("t1"), reply="m1"),
  _event("d", "c", _result("t1", "a.py"), toolUseResult={"stdout": "a.py"}),
  _event("e", "d", _text("One file."), reply="m2"),
]


def test_lines_of_one_reply_are_one_turn(tmp_path):
  (found,), skips = _import(tmp_path, {"s.jsonl": _CLAUDE})
  assert found.messages == (
    types.Message("user", "List it."),
    types.Message(
      "assistant",
      reasoning="Hm.",
      tool_calls=(types.ToolCall("Bash", '{"command": "ls"}', "t1"),),
    ),
    types.Message("tool", "a.py", tool_call_id="t1"),
    types.Message("assistant", "One file."),
  )
  assert (found.id, found.task_id, skips) == ("s", "s", [])


def test_parallel_calls_and_their_results_are_no_branches(tmp_path):
  log = [
    _event("a", None, "List both."),
    _event("b", "a", _use("t1"), reply="m1"),
    _event("c", "b", _use("t2"), reply="m1"),
    # Each result hangs on the line of its call; so does a prompt typed then.
    _event("d", "b", _result("t1", "one")),
    _event("e", "c", _result("t2", "two")),
    _event("f", "e", _text("Done."), reply="m2"),
  ]
  (found,), skips = _import(tmp_path, {"s.jsonl": log})
  assert _said(found) == [
    "user List both.",
    "assistant  Bash Bash",
    "tool one",
    "tool two",
    "assistant Done.",
  ]
  assert not skips


def test_a_prompt_taken_back_begins_a_branch(tmp_path):
  log = [
    *_CLAUDE,
    _event("f", "e", "Delete it."),
    _event("g", "f", _text("Deleted."), reply="m3"),
    _event("h", "e", "Keep it."),
    _event("i", "h", _text("Kept."), reply="m4"),
  ]
  found, skips = _import(tmp_path, {"s.jsonl": log})
  first, second = map(_said, found)
  assert first[-3:] == ["assistant One file.", "user Delete it.",
                        "assistant Deleted."]  # fmt: skip
  # The turns of both are turns of the first only.
  assert second == [
    "user List it.",
    "assistant!  Bash",
    "tool a.py",
    "assistant! One file.",
    "user Keep it.",
    "assistant Kept.",
  ]
  assert not skips


def test_side_chains_are_trajectories_of_their_own(tmp_path):
  side = {"isSidechain": True, "agentId": "x"}
  log = [
    *_CLAUDE[:4],
    _event("s1", None, "Look for it.", **side),
    _event("s2", "s1", _text("Found."), reply="m8", **side),
    *_CLAUDE[4:],
    _event("z1", None, _text("No prompt."), reply="m9", isSidechain=True),
  ]
  found, skips = _import(tmp_path, {"s.jsonl": log})
  assert [len(t.messages) for t in found] == [4, 2]
  assert _said(found[1]) == ["user Look for it.", "assistant Found."]
  assert _reasons(skips) == [
    "s.jsonl line 9: line 9: a turn without anything before it; expected its"
    " prompt"
  ]


def test_a_compaction_begins_anew_with_its_summary(tmp_path):
  log = [
    *_CLAUDE,
    {"type": "system", "subtype": "compact_boundary", "uuid": "p",
     "parentUuid": None, "logicalParentUuid": "e", "sessionId": "s"},
    _event("q", "p", "You listed it.", isCompactSummary=True),
    _event("r", "q", "Go on."),
    _event("t", "r", _text("Gone."), reply="m5"),
  ]  # fmt: skip
  found, skips = _import(tmp_path, {"s.jsonl": log})
  assert _said(found[1]) == [
    "user You listed it.",
    "user Go on.",
    "assistant Gone.",
  ]
  assert len(found) == 2 and not skips


def test_a_resumed_session_goes_on_in_another_file(tmp_path):
  files = {
    "p/a.jsonl": _CLAUDE,
    # Older versions repeat the history, newer ones only refer to it.
    "p/b.jsonl": [
      *[{**line, "sessionId": "s2"} for line in _CLAUDE[1:]],
      _event("f", "e", "And now?", sessionId="s2"),
      _event("g", "f", _text("Now."), reply="m3", sessionId="s2"),
    ],
    "p/c.jsonl": [{"type": "summary", "summary": "x", "leafUuid": "e"}],
  }
  (found,), skips = _import(tmp_path, files)
  assert _said(found)[-2:] == ["user And now?", "assistant Now."]
  assert len(found.messages) == 6
  assert _reasons(skips) == ["p/c.jsonl None: a session without a message"]
  _, (skip,) = _import(tmp_path / "alone", {"c.jsonl": files["p/c.jsonl"]})
  assert skip.reason == "no trajectory in it, though of claude_code"


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (lambda log: log.pop(3), "parentUuid: 'c'; expected the uuid of an event"),
    (lambda log: log.reverse(), "expected the uuid of an event before it"),
    (
      lambda log: log[4]["message"]["content"][0].update(
        content=[{"type": "image", "source": {}}]
      ),
      "line 5.message.content[0].content[0]: image part",
    ),
    (
      lambda log: log[5]["message"].update(
        content=[{"type": "server_tool_use", "name": "web_search"}]
      ),
      "line 6.message.content[0]: part of type 'server_tool_use'",
    ),
    (
      lambda log: log[3]["message"]["content"][0].update(cached="x"),
      "line 3.message.content[1][0].cached",
    ),
    (
      lambda log: log[5]["message"].update(role="critic"),
      "line 6.message.role: 'critic'; expected 'assistant'",
    ),
  ],
)
def test_a_session_that_cannot_be_followed_is_refused(tmp_path, change, reason):
  log = copy.deepcopy(_CLAUDE)
  change(log)
  _, skips = _import(tmp_path, {"s.jsonl": log})
  assert reason in " ".join(_reasons(skips))


def test_what_is_not_read_is_named_and_costs_itself_only(tmp_path):
  log = copy.deepcopy(_CLAUDE)
  log[5]["mood"] = "good"
  log[1:1] = [{"type": "hologram", "uuid": "z"}, {"x": 1}]
  attached = {"type": "attachment", "uuid": "y", "parentUuid": "d"}
  log[7:7] = [
    {**attached, "attachment": {"type": "queued_command", "prompt": "Hurry."}},
    {**attached, "uuid": "y2", "attachment": {"type": "date"}},
  ]
  (found,), skips = _import(tmp_path, {"s.jsonl": log})
  assert "user Hurry." in _said(found)
  assert _reasons(skips) == [
    "s.jsonl line 2: type 'hologram': not read",
    "s.jsonl line 3: an object with the keys x: not read",
    "s.jsonl line 9: attachment 'date': not read",
    "s.jsonl line 10: key 'mood': not read",
  ]


def test_what_no_model_wrote_is_context(tmp_path):
  log = copy.deepcopy(_CLAUDE)
  log[5]["message"]["model"] = "<synthetic>"
  (found,), _ = _import(tmp_path, {"s.jsonl": log})
  assert _said(found)[-1] == "assistant! One file."


def test_a_call_that_was_interrupted_needs_no_result(tmp_path):
  (found,), skips = _import(tmp_path, {"s.jsonl": _CLAUDE[:4]})
  assert _said(found)[-1] == "assistant  Bash"
  stopped = _event("d", "c", _text("[Request interrupted by user]"))
  (found,), skips = _import(tmp_path, {"s.jsonl": [*_CLAUDE[:4], stopped]})
  assert _said(found)[-1] == "user [Request interrupted by user]"
  assert not skips


def test_a_line_that_is_cut_costs_itself_only(tmp_path):
  cut = json.dumps(_CLAUDE[5])[:50]
  (found,), (skip,) = _import(tmp_path, {"s.jsonl": [*_CLAUDE[:5], cut]})
  assert len(found.messages) == 3
  assert "not JSON" in skip.reason
  # In the middle it takes what follows with it, by name.
  (found,), skips = _import(
    tmp_path, {"s.jsonl": [*_CLAUDE[:5], cut, _CLAUDE[5]]}
  )
  assert len(found.messages) == 3
  assert "the events after line 6" in skips[1].reason


def test_streams_without_links_are_read_in_order(tmp_path):
  """`--output-format stream-json`: no uuids, sub-agents by the call."""

  def line(kind, content, **more):
    message = {"role": kind, "content": content}
    return {"type": kind, "message": message, "session_id": "s", **more}

  log = [
    {"type": "system", "subtype": "init", "session_id": "s", "tools": ["Bash"]},
    line("user", "List it."),
    line("assistant", _use("t1")),
    line("user", "Sub.", parent_tool_use_id="t1"),
    line("assistant", _text("Sub done."), parent_tool_use_id="t1"),
    line("user", _result("t1", "a.py")),
    line("assistant", _text("One.")),
    {"type": "result", "subtype": "success", "session_id": "s"},
  ]
  found, skips = _import(tmp_path, {"s.jsonl": log})
  assert [_said(t) for t in found] == [
    ["user List it.", "assistant  Bash", "tool a.py", "assistant One."],
    ["user Sub.", "assistant Sub done."],
  ]
  assert not skips


def _item(kind, **more):
  return {"type": "response_item", "payload": {"type": kind, **more}}


def _spoken(role, text):
  kind = "output_text" if role == "assistant" else "input_text"
  return _item("message", role=role, content=[{"type": kind, "text": text}])


_CODEX = [
  {
    "type": "session_meta",
    "payload": {
      "id": "c",
      "cwd": "/w",
      "base_instructions": {"text": "You code."},
      "dynamic_tools": [{"name": "shell", "inputSchema": {"type": "object"}}],
    },
  },
  {"type": "turn_context", "payload": {"cwd": "/w"}},
  _spoken("developer", "Be short."),
  _spoken("user", "List it."),
  {"type": "event_msg", "payload": {"type": "user_message", "message": "x"}},
  _item(
    "reasoning",
    summary=[{"type": "summary_text", "text": "Hm."}],
    encrypted_content="x",
  ),
  _item("function_call", name="shell", arguments='{"c": 1}', call_id="c1"),
  _item("function_call_output", call_id="c1", output="a.py"),
  _item("custom_tool_call", name="apply_patch", input="*** x", call_id="c2"),
  _item("custom_tool_call_output", call_id="c2", output="ok"),
  _item(
    "local_shell_call",
    call_id="c3",
    status="completed",
    action={"type": "exec", "command": ["ls"], "user": None},
  ),
  _item(
    "function_call_output",
    call_id="c3",
    output={"content": "no such file", "success": False},
  ),
  _item("ghost_snapshot", ghost_commit={"id": "1"}),
  _spoken("assistant", "Done."),
]


def test_codex_items_are_turns_and_results(tmp_path):
  (found,), skips = _import(tmp_path, {"r.jsonl": _CODEX})
  assert _said(found) == [
    "system You code.",
    "system Be short.",
    "user List it.",
    "assistant  shell",
    "tool a.py",
    "assistant  apply_patch",
    "tool ok",
    "assistant  local_shell",
    "tool no such file",
    "assistant Done.",
  ]
  turns = [m for m in found.messages if m.tool_calls]
  assert turns[0].reasoning == "Hm."
  assert [m.tool_calls[0].arguments for m in turns] == [
    '{"c": 1}',
    '{"input": "*** x"}',
    '{"command": ["ls"]}',
  ]
  assert [t["function"]["name"] for t in found.tools] == ["shell"]
  assert (found.task_id, skips) == ("c", [])


def test_codex_before_the_envelopes(tmp_path):
  instructions = "Use tabs."
  log = [
    {"id": "c", "timestamp": "2025", "instructions": instructions, "git": {}},
    {"record_type": "state"},
    *[line["payload"] for line in _CODEX[3:8] if "role" in line["payload"]
      or line["type"] == "response_item"],
    _spoken("assistant", "Done.")["payload"],
  ]  # fmt: skip
  (found,), skips = _import(tmp_path, {"r.jsonl": log})
  assert _said(found)[:2] == ["system Use tabs.", "user List it."]
  assert len(found.messages) == 5 and not skips
  # Where a message repeats them, they are not said twice.
  log[2] = _spoken("user", f"<user_instructions>{instructions}")["payload"]
  (found,), skips = _import(tmp_path, {"r.jsonl": log})
  assert _said(found)[0] == "user <user_instructions>Use tabs."


def test_codex_compaction(tmp_path):
  kept = [_spoken("user", "Summary.")["payload"]]
  after = [_spoken("user", "More."), _spoken("assistant", "Fine.")]
  line = {"type": "compacted", "payload": {"message": "Summary."}}
  found, skips = _import(tmp_path, {"r.jsonl": [*_CODEX, line, *after]})
  assert len(found) == 1
  assert "line 15: compacted without replacement_history" in skips[0].reason
  line["payload"]["replacement_history"] = kept
  found, skips = _import(tmp_path, {"r.jsonl": [*_CODEX, line, *after]})
  assert _said(found[1]) == [
    "system You code.",
    "user Summary.",
    "user More.",
    "assistant Fine.",
  ]
  assert len(found) == 2 and not skips


def test_codex_sessions_in_one_file_and_forks(tmp_path):
  other = copy.deepcopy(_CODEX)
  other[0]["payload"]["id"] = "d"
  found, _ = _import(tmp_path, {"r.jsonl": [*_CODEX, *other]})
  assert [t.task_id for t in found] == ["c", "d"]
  # A fork has the metadata of what it goes on from behind its own.
  (found,), _ = _import(tmp_path, {"r.jsonl": [other[0], *_CODEX]})
  assert found.task_id == "d"


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (
      _item("web_search_call", action={"query": "x"}),
      "line 8.type: 'web_search_call'; expected one of",
    ),
    (
      _item(
        "message",
        role="user",
        content=[{"type": "input_image", "image_url": "x"}],
      ),
      "line 8.content[0]: image part",
    ),
    (
      {"type": "event_msg", "payload": {"type": "thread_rolled_back"}},
      "line 8: thread_rolled_back",
    ),
    ({"type": "dream", "payload": {}}, "line 8: type 'dream': not read"),
    (
      _item("function_call_output", call_id="c9", output="x"),
      "a result of call 'c9': no call before it has this id",
    ),
    (
      {**_spoken("user", "Lost."), "type": "event_msg"},
      "line 8: message in a line of type 'event_msg': not read",
    ),
  ],
)
def test_codex_names_what_it_cannot_read(tmp_path, line, reason):
  log = [*_CODEX[:7], line, *_CODEX[7:]]
  _, skips = _import(tmp_path, {"r.jsonl": log})
  assert reason in " ".join(_reasons(skips))


def _v1(kind, n, **more):
  source = "user" if kind == "user" else "agent"
  return {"id": f"e{n}", "kind": kind, "source": source, **more}


def _message(n, role, text):
  message = {"role": role, "content": _text(text)}
  return _v1("MessageEvent", n, llm_message=message)


def _act(n, call_id, response, thought=(), **more):
  call = {"id": call_id, "name": "terminal", "arguments": '{"command": "ls"}'}
  return _v1("ActionEvent", n, thought=list(thought), tool_call=call,
             tool_name="terminal", tool_call_id=call_id,
             llm_response_id=response, action={"kind": "X"}, **more)  # fmt: skip


def _see(n, call_id, text):
  return _v1("ObservationEvent", n, tool_name="terminal",
             tool_call_id=call_id, action_id="x",
             observation={"kind": "O", "content": _text(text)})  # fmt: skip


_OPENHANDS = [
  _v1(
    "SystemPromptEvent",
    0,
    system_prompt={"type": "text", "text": "You act."},
    dynamic_context={"type": "text", "text": "Host x."},
    tools=[{"kind": "TerminalTool", "title": "terminal", "description": "d"}],
  ),
  _message(1, "user", "List both."),
  _v1("ConversationStateUpdateEvent", 2, key="stats", value={"a": 1}),
  _act(3, "c1", "r1", _text("Look."), reasoning_content="Hm."),
  _act(4, "c2", "r1"),
  _see(5, "c1", "one"),
  _v1("AgentErrorEvent", 6, tool_name="terminal", tool_call_id="c2",
      error="no such folder"),
  _act(7, "c3", "r2", thinking_blocks=[{"type": "thinking", "thinking": "So."}]),
  _v1("UserRejectObservation", 8, tool_name="terminal", tool_call_id="c3",
      rejection_reason="no"),
  _message(9, "assistant", "Done."),
]  # fmt: skip


def test_openhands_events(tmp_path):
  (found,), skips = _import(tmp_path, {"events.jsonl": _OPENHANDS})
  assert _said(found) == [
    "system You act.\nHost x.",
    "user List both.",
    "assistant Look. terminal terminal",
    "tool one",
    "tool no such folder",
    "assistant  terminal",
    "tool Action rejected: no",
    "assistant Done.",
  ]
  assert found.messages[2].reasoning == "Hm."
  assert found.messages[5].reasoning == "So."
  assert found.tools[0]["function"]["name"] == "terminal"
  assert not skips


def test_openhands_one_file_an_event_or_in_a_row(tmp_path):
  files = {
    f"c/events/event-{n:05}-x.json": event for n, event in enumerate(_OPENHANDS)
  }
  (found,), _ = _import(tmp_path, files)
  (again,), _ = _import(
    tmp_path / "rows",
    {"out.jsonl": [{"instance_id": "i", "history": _OPENHANDS}]},
  )
  (whole,), _ = _import(tmp_path / "list", {"e.json": _OPENHANDS})
  assert found.messages == again.messages == whole.messages


def test_openhands_condensation(tmp_path):
  condensed = _v1(
    "Condensation",
    10,
    forgotten_event_ids=["e3", "e4", "e5", "e6"],
    summary="You listed both.",
    summary_offset=2,
    llm_response_id="r9",
  )
  after = [_message(11, "user", "More."), _message(12, "assistant", "Fine.")]
  found, skips = _import(
    tmp_path, {"e.jsonl": [*_OPENHANDS, condensed, *after]}
  )
  assert _said(found[1]) == [
    "system You act.\nHost x.",
    "user List both.",
    "user You listed both.",
    "assistant!  terminal",
    "tool Action rejected: no",
    "assistant! Done.",
    "user More.",
    "assistant Fine.",
  ]
  assert len(found) == 2 and not skips


@pytest.mark.parametrize(
  ("n", "event", "reason"),
  [
    (2, _v1("DreamEvent", 2), "line 3: kind 'DreamEvent': not read"),
    (3, None, "a result of call 'c1': no call before it has this id"),
    (
      5,
      _v1("ObservationEvent", 5, tool_call_id="c1",
          observation={"kind": "O", "rows": 1}),
      "line 6.observation: keys kind, rows; expected 'content'",
    ),
    (
      1,
      _v1("MessageEvent", 1, llm_message={
          "role": "user", "content": [{"type": "image", "image_urls": ["x"]}]
      }),
      "line 2.llm_message.content[0]: image part",
    ),
    (9, {**_OPENHANDS[9], "mood": "good"}, "line 10: key 'mood': not read"),
  ],
)  # fmt: skip
def test_openhands_names_what_it_cannot_read(tmp_path, n, event, reason):
  log = [*_OPENHANDS[:n], *([event] if event else []), *_OPENHANDS[n + 1 :]]
  _, skips = _import(tmp_path, {"e.jsonl": log})
  assert reason in " ".join(_reasons(skips))


def _reply(text, call_id, **more):
  call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
  return {"role": "assistant", "content": text, "tool_calls": [call], **more}


def _calls():
  """Three calls of one run, each a document."""
  history = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
  ]
  calls = []
  for n in range(3):
    reply = _reply(f"turn {n}", f"c{n}", reasoning_content=f"why {n}")
    calls.append(
      {
        "messages": list(history),
        "response": {"choices": [{"message": reply}]},
        "kwargs": {"tools": []},
        "timestamp": n,
      }
    )
    history += [
      _reply(f"turn {n}", f"c{n}"),
      {"role": "tool", "tool_call_id": f"c{n}", "content": str(n)},
    ]
  return calls


def test_openhands_calls_are_turns_once_each(tmp_path):
  files = {f"run/llm-{n}.json": call for n, call in enumerate(_calls())}
  files["run/llm-1x.json"] = {"damaged": True}
  (found,), skips = _import(tmp_path, files)
  turns = [m for m in found.messages if m.role == "assistant"]
  assert [m.content for m in turns] == ["turn 0", "turn 1", "turn 2"]
  # The histories drop the thinking; the replies have it.
  assert [m.reasoning for m in turns] == ["why 0", "why 1", "why 2"]
  assert (found.id, found.task_id) == ("run/llm-2", "run")
  assert [s.file for s in skips] == ["run/llm-1x.json"]


def test_openhands_restart_gives_up_what_came_before(tmp_path):
  first, second, third = _calls()
  again = copy.deepcopy(first)
  again["response"]["choices"][0]["message"]["content"] = "anew"
  (found,), (skip,) = _import(
    tmp_path, {"c.jsonl": [first, second, third, again]}
  )
  assert _said(found)[-1] == "assistant anew f"
  assert (skip.where, skip.reason) == ("3", "an attempt that was restarted")


def test_openhands_condensed_history_keeps_turns_as_context(tmp_path):
  first, second, third = _calls()
  del third["messages"][2:4]  # The first turn and its result are gone.
  found, skips = _import(tmp_path, {"c.jsonl": [first, second, third]})
  assert [_said(t)[2:] for t in found] == [
    ["assistant turn 0 f", "tool 0", "assistant turn 1 f"],
    ["assistant! turn 1 f", "tool 1", "assistant turn 2 f"],
  ]
  assert not skips


def _mini(*messages, **more):
  start = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
  return {
    "trajectory_format": "mini-swe-agent-1",
    "messages": [*start, *messages],
    **more,
  }


def test_mini_swe_text_actions(tmp_path):
  one = "Look.\n```bash\nls\n```\nThen more."
  two = "```bash\nls\n```\n```bash\npwd\n```"
  document = _mini(
    {"role": "assistant", "content": two},
    {"role": "user", "content": "one block, please"},
    {"role": "assistant", "content": one},
    {"role": "user", "content": "stop", "extra": {"interrupt_type": "User"}},
    {"role": "assistant",
     "content": "<mswea_bash_command>ls -a</mswea_bash_command>"},
    {"role": "user", "content": "a.py"},
    {"role": "exit", "content": "diff"},
  )  # fmt: skip
  (found,), skips = _import(tmp_path, {"a.traj.json": document})
  assert _said(found)[2:] == [
    # A reply that the agent refused must not be learnt.
    f"assistant! {two}",
    "user one block, please",
    "assistant Look.\nThen more. bash",
    "user stop",
    "assistant  bash",
    "tool a.py",
  ]
  assert found.messages[6].tool_calls[0].arguments == '{"command": "ls -a"}'
  assert not skips


def test_mini_swe_actions_as_its_config_says(tmp_path):
  document = _mini(
    {"role": "assistant", "content": "RUN(ls)"},
    info={"mini_version": "1", "config": {"agent": {"action_regex":
                                                    r"RUN\((.*?)\)"}}},
  )  # fmt: skip
  del document["trajectory_format"]
  (found,), _ = _import(tmp_path, {"a.json": document})
  assert found.messages[2].tool_calls[0].arguments == '{"command": "ls"}'


def test_mini_swe_refuses_replies_without_calls_where_others_call(tmp_path):
  document = _mini(_reply("a", "c1"), {"role": "assistant", "content": "b"})
  (found,), _ = _import(tmp_path, {"a.json": document})
  assert _said(found)[2:] == ["assistant a f", "assistant! b"]


def test_mini_swe_on_the_responses_api(tmp_path):
  items = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "c1", "name": "bash",
     "arguments": "{}"},
  ]  # fmt: skip
  document = _mini(
    {"object": "response", "output": items, "extra": {"cost": 1}},
    {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
    {"role": "exit", "content": ""},
  )
  (found,), _ = _import(tmp_path, {"a.json": document})
  assert _said(found)[2:] == ["assistant  bash", "tool a.py"]
  assert found.messages[2].reasoning == "Hm."


def test_responses_rows(tmp_path):
  items = [line["payload"] for line in _CODEX[2:8] if "role" in line["payload"]
           or line["type"] == "response_item"]  # fmt: skip
  row = {
    "instructions": "You code.",
    "input": items[:2],
    "output": items[2:],
    "tools": [{"type": "function", "name": "shell", "parameters": {}}],
    "resolved": True,
    "mood": "good",
  }
  (found,), skips = _import(tmp_path, {"r.jsonl": [row]})
  assert _said(found) == [
    "system You code.",
    "system Be short.",
    "user List it.",
    "assistant  shell",
    "tool a.py",
  ]
  assert found.success is True
  assert _reasons(skips) == ["r.jsonl None: columns not read: mood"]
  # What an agent sends with its last request is the same.
  whole = {**row, "input": items, "output": None}
  (same,), _ = _import(tmp_path, {"r.jsonl": [whole]})
  assert same.messages == found.messages
  _, (skip,) = _import(
    tmp_path, {"r.jsonl": [{**row, "input": [], "instructions": None}]}
  )
  assert "input: empty; expected what the model saw" in skip.reason


def test_documents_of_atif_in_a_list(tmp_path):
  def document(text, **more):
    steps = [
      {"source": "user", "message": "q"},
      {"source": "agent", "message": f"<think>why</think>{text}"},
    ]
    return {"schema_version": "ATIF-v1.6", "agent": {"name": "a"},
            "steps": steps, **more}  # fmt: skip

  inner = document("inner")
  found, skips = _import(
    tmp_path,
    {"a.json": [document("one", subagent_trajectories=[inner]),
                document("two")]},
  )  # fmt: skip
  assert [_said(t)[1] for t in found] == [
    "assistant one",
    "assistant inner",
    "assistant two",
  ]
  assert all(t.messages[1].reasoning == "why" for t in found)
  assert not skips
  odd = document("x", steps=[{"source": "user", "message": "q", "mood": "y"}])
  _, (skip,) = _import(tmp_path, {"a.json": [odd]})
  assert "steps[0].mood" in skip.reason


@pytest.mark.parametrize(
  "log", [_CLAUDE, _CODEX, _OPENHANDS], ids=["claude", "codex", "openhands"]
)
def test_damaged_logs_are_named_or_read(tmp_path, log):
  """Lines cut, dropped, moved, their values replaced: never a traceback."""
  junk = [None, 3, True, "", "x", [], {}, [None], ["x"], {"a": 1}, [{}]]
  path = tmp_path / "s.jsonl"
  for seed in range(60):
    draw = random.Random(seed)
    lines = copy.deepcopy(log)
    for _ in range(draw.randint(1, 3)):
      spots = list(_spots(lines))
      spot, key = draw.choice(spots)
      if draw.random() < 0.5:
        spot[key] = draw.choice(junk)
      elif isinstance(spot, dict) and draw.random() < 0.5:
        spot[f"{key}_"] = spot.pop(key)
      else:
        del spot[key]
    if draw.random() < 0.2:
      draw.shuffle(lines)
    text = "\n".join(json.dumps(line) for line in lines)
    if draw.random() < 0.2:
      text = text[: draw.randint(1, len(text))]
    path.write_text(text or "x")
    items = list(importers.import_path(path))
    assert items, seed
    for item in items:
      if isinstance(item, importers.Skip):
        assert item.reason and "\n" not in item.reason
      else:
        row = json.loads(records.encode(records.trajectory_to_json(item)))
        assert records.trajectory_from_json(row) == item


def _spots(value):
  keys = range(len(value)) if isinstance(value, list) else list(value)
  for key in keys:
    yield value, key
    if isinstance(value[key], (dict, list)):
      yield from _spots(value[key])
