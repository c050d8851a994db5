"""Chat rows in the words of each kind of data, and what is refused of them."""

import json

import pytest

from pivotrl_jax.data import importers
from pivotrl_jax.data.importers import files

_Q = {"role": "user", "content": "q"}
_A = {"role": "assistant", "content": "a"}
_DONE = {"role": "assistant", "content": "done"}
_F = {"name": "f", "arguments": {"a": 1}}
_G = {"name": "g", "arguments": {}}
_TOOL = {
  "type": "function",
  "function": {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
  },
}


def _hermes(*calls):
  return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)


def _native(*calls, ids=True, **more):
  made = [
    {"type": "function", "function": call, **({"id": f"c{n}"} if ids else {})}
    for n, call in enumerate(calls)
  ]
  return {"role": "assistant", "content": None, "tool_calls": made, **more}


def _result(text="1", **more):
  return {"role": "tool", "content": text, **more}


def _said(*turns):
  return {"messages": [_Q, *turns, _DONE]}


def _shared(*turns):
  return [dict(zip(("from", "value"), turn)) for turn in turns]


# The chat of most rows here: a question, one call with its result, an answer.
_ONE_CALL = [("user", "q"), ("f", '{"a": 1}'), ("tool", "1", 0), "done"]
_TWO_CALLS = [
  ("user", "q"), ("f", '{"a": 1}', "g", "{}"), ("tool", "1", 0),
  ("tool", "2", 1), "done",
]  # fmt: skip

# What a row is -> (row, the chat it holds).
_READ = {
  "native": (_said(_native(_F), _result(tool_call_id="c0")), _ONE_CALL),
  "no ids": (_said(_native(_F, ids=False), _result()), _ONE_CALL),
  "results out of order": (
    _said(
      _native(_F, _G),
      _result("2", tool_call_id="c1"),
      _result("1", tool_call_id="c0"),
    ),
    [*_TWO_CALLS[:2], ("tool", "2", 1), ("tool", "1", 0), "done"],
  ),
  "results by name": (
    _said(
      _native(_F, _G, ids=False), _result("2", name="g"), _result("1", name="f")
    ),
    [*_TWO_CALLS[:2], ("tool", "2", 1), ("tool", "1", 0), "done"],
  ),
  "calls in messages of their own": (
    _said(
      _native(_F, ids=False), _native(_G, ids=False), _result("1"), _result("2")
    ),
    [
      ("user", "q"), ("f", '{"a": 1}'), ("g", "{}"), ("tool", "1", 0),
      ("tool", "2", 1), "done",
    ],
  ),  # fmt: skip
  "numbers as ids": (
    _said(
      {"role": "assistant", "tool_calls": [{"id": 7, "function": _F}]},
      _result(tool_call_id=7),
    ),
    _ONE_CALL,
  ),
  "a result that is data": (
    _said(_native(_F), _result({"t": [1]}, tool_call_id="c0")),
    [*_ONE_CALL[:2], ("tool", '{"t": [1]}', 0), "done"],
  ),
  "calls as text": (
    _said(
      {"role": "assistant", "tool_calls": json.dumps([{"function": _F}])},
      _result(),
    ),
    _ONE_CALL,
  ),
  "call and arguments as text": (
    _said(
      {
        "role": "assistant",
        "tool_calls": [
          {"function": json.dumps({"name": "f", "arguments": '{"a": 1}'})}
        ],
      },
      _result(),
    ),
    _ONE_CALL,
  ),
  **{
    f"arguments under {key}": (
      _said(
        {"role": "assistant", "tool_calls": [{"name": "f", key: {"a": 1}}]},
        _result(),
      ),
      _ONE_CALL,
    )
    for key in ("args", "parameters", "input", "tool_input")
  },
  **{
    f"arguments {held!r}": (
      _said(_native({"name": "f", "arguments": held}, ids=False), _result()),
      [("user", "q"), ("f", "{}"), ("tool", "1", 0), "done"],
    )
    for held in (None, "", {}, " ")
  },
  "function_call": (
    _said(
      {**_A, "content": None, "function_call": {**_F, "arguments": '{"a": 1}'}},
      {"role": "function", "name": "f", "content": "1"},
    ),
    _ONE_CALL,
  ),
  "function_call beside its tool_calls": (
    _said(_native(_F, function_call=_F), _result(tool_call_id="c0")),
    _ONE_CALL,
  ),
  "dataclaw": (
    _said(
      {
        "role": "assistant",
        "content": "",
        "tool_uses": [
          {"tool": "f", "input": {"a": 1}, "output": {"text": "1"},
           "status": "success"},
        ],
      }
    ),
    _ONE_CALL,
  ),  # fmt: skip
  "ms-swift": (
    _said(
      {"role": "tool_call", "content": json.dumps(_F)},
      {"role": "tool_call", "content": json.dumps(_G)},
      {"role": "tool_response", "content": "1"},
      {"role": "tool_response", "content": "2"},
    ),
    _TWO_CALLS,
  ),
  "langchain": (
    {
      "messages": [
        {"type": "human", "content": "q"},
        {
          "type": "ai",
          "content": "",
          "tool_calls": [
            {"name": "f", "args": {"a": 1}, "id": "x", "type": "tool_call"}
          ],
          "response_metadata": {"model": "m"},
        },
        {"type": "tool", "content": "1", "tool_call_id": "x"},
        {"type": "ai", "content": "done"},
      ]
    },
    _ONE_CALL,
  ),
  "anthropic": (
    {
      "system": [{"type": "text", "text": "s", "cache_control": {"x": 1}}],
      "messages": [
        _Q,
        {
          "role": "assistant",
          "content": [
            {"type": "tool_use", "id": "x", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "y", "name": "g", "input": {}},
          ],
        },
        {
          "role": "user",
          "content": [
            {"type": "tool_result", "tool_use_id": "y", "content": "2"},
            {
              "type": "tool_result",
              "tool_use_id": "x",
              "content": [{"type": "text", "text": "1"}],
              "is_error": True,
            },
            {"type": "text", "text": "go on"},
          ],
        },
        _DONE,
      ],
    },
    [
      ("system", "s"), *_TWO_CALLS[:2], ("tool", "2", 1), ("tool", "1", 0),
      ("user", "go on"), "done",
    ],
  ),  # fmt: skip
  "parts": (
    {
      "messages": [
        {"role": "user", "content": [{"type": "text", "value": "q"}]},
        {
          "role": "assistant",
          "content": [{"type": "tool_call", "value": json.dumps(_F)}],
        },
        _result([{"type": "text", "text": "1", "image_url": None}]),
        {"role": "assistant", "content": ["do", {"text": "ne"}]},
      ]
    },
    [*_ONE_CALL[:3], "do\nne"],
  ),
  "sharegpt": (
    {
      "conversations": _shared(
        ("human", "q"), ("function_call", json.dumps(_F)),
        ("observation", "1"), ("gpt", "done"),
      )
    },
    _ONE_CALL,
  ),  # fmt: skip
  "sharegpt, a list of calls": (
    {
      "conversations": _shared(
        ("human", "q"), ("function_call", json.dumps([_F, _G])),
        ("observation", "1"), ("observation", "2"), ("gpt", "done"),
      )
    },
    _TWO_CALLS,
  ),  # fmt: skip
  "hermes": (
    {
      "conversations": _shared(
        ("human", "q"), ("gpt", _hermes(_F, _G)),
        (
          "tool",
          "<tool_response>1</tool_response>\n<tool_response>2</tool_response>",
        ),
        ("gpt", "done"),
      )
    },
    _TWO_CALLS,
  ),  # fmt: skip
  "hermes, results from the user": (
    _said(
      {"role": "assistant", "content": _hermes(_F)},
      {"role": "user", "content": "<tool_response>\n1\n</tool_response>"},
    ),
    _ONE_CALL,
  ),
  "hermes in Python's spelling": (
    _said(
      {"role": "assistant", "content": f"<tool_call>{_F}</tool_call>"},
      _result(),
    ),
    _ONE_CALL,
  ),
  "qwen coder": (
    {
      "conversations": _shared(
        ("human", "q"),
        (
          "gpt",
          "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n"
          "</function>\n</tool_call>",
        ),
      )
    },
    [("user", "q"), ("f", '{"a": "x"}')],
  ),
  "qwen coder, by the types of its schema": (
    _said(
      {"role": "assistant",
       "content": "<tool_call><function=f><parameter=a>1</parameter>"
       "</function></tool_call>"},
      _result(),
    )
    | {"tools": [{"name": "f", "parameters": {"type": "object", "properties": {
        "a": {"type": "integer"}}}}]},
    _ONE_CALL,
  ),
  "arguments made text twice": (
    _said(
      _native({"name": "f", "arguments": json.dumps('{"a": 1}')}),
      _result(tool_call_id="c0"),
    ),
    _ONE_CALL,
  ),
  "harmony": (
    _said(
      {"role": "assistant", "channel": "commentary", "content": '{"a": 1}',
       "recipient": "functions.f", "content_type": "<|constrain|>json"},
      {"role": "tool", "name": "functions.f", "content": "1"},
    ),
    _ONE_CALL,
  ),  # fmt: skip
  "messages as text": (
    {"messages": json.dumps([_Q, _A])},
    [("user", "q"), "a"],
  ),
  "each message as text": (
    {"messages": [json.dumps(_Q), json.dumps(_A)]},
    [("user", "q"), "a"],
  ),
  "a bare list": ([_Q, _A], [("user", "q"), "a"]),
  "trajectory": ({"trajectory": [_Q, _A]}, [("user", "q"), "a"]),
  "prompt and completion": (
    {"prompt": [_Q], "completion": [_A]},
    [("user", "q"), "a"],
  ),
  "texts": ({"prompt": "q", "completion": "a"}, [("user", "q"), "a"]),
  "text and message": (
    {"prompt": "q", "completion": _A},
    [("user", "q"), "a"],
  ),
  "a prompt's own turns are context": (
    {"prompt": [_Q, _A, _Q], "completion": [_DONE]},
    [("user", "q"), ("context", "a"), ("user", "q"), "done"],
  ),
  "developer": (
    {"messages": [{"role": "developer", "content": "s"}, _Q, _A]},
    [("system", "s"), ("user", "q"), "a"],
  ),
  "system column": (
    {"system": "s", "messages": [_Q, _A]},
    [("system", "s"), ("user", "q"), "a"],
  ),
  "a greeting is context": (
    {"messages": [_A, _Q, _DONE]},
    [("context", "a"), ("user", "q"), "done"],
  ),
  "turns in a row, and a user's last word": (
    {"messages": [_Q, _A, _DONE, _Q]},
    [("user", "q"), "a", "done", ("user", "q")],
  ),
  "an agent that acts in text": (
    {"messages": [_Q, _A, _result("x"), _DONE]},
    [("user", "q"), "a", ("tool", "x", None), "done"],
  ),
  "text before its call": (
    _said(_A, {"role": "tool_call", "content": json.dumps(_F)}, _result()),
    [("user", "q"), ("a", ("f", '{"a": 1}')), ("tool", "1", 0), "done"],
  ),
  "markup in an answer that is JSON": (
    {"messages": [_Q, {**_A, "content": '{"x": "<tool_call>"}'}]},
    [("user", "q"), '{"x": "<tool_call>"}'],
  ),
}  # fmt: skip


def _read(row, **file):
  rows = files.File("r.jsonl", lambda: iter([(1, row)]), **file)
  items = list(importers.IMPORTERS["openai"][1](rows))
  skips = [i for i in items if isinstance(i, importers.Skip)]
  return [i for i in items if not isinstance(i, importers.Skip)], skips


def _short(trajectory):
  """Messages as the table writes them; calls by their order in the chat."""
  ids = [c.id for m in trajectory.messages for c in m.tool_calls]
  assert len(set(ids)) == len(ids) and None not in ids
  for m in trajectory.messages:
    if m.role == "tool":
      answered = m.tool_call_id
      yield "tool", m.content, ids.index(answered) if answered else None
    elif m.role != "assistant":
      yield m.role, m.content
    elif m.tool_calls:
      calls = tuple(x for c in m.tool_calls for x in (c.name, c.arguments))
      yield (m.content, calls) if m.content else calls
    else:
      yield ("context", m.content) if m.context else m.content


@pytest.mark.parametrize("name", _READ)
def test_read(name):
  row, wanted = _READ[name]
  kinds = importers.IMPORTERS.items()
  assert next(kind for kind, (known, _) in kinds if known(row)) == "openai"
  (trajectory,), skips = _read(row)
  assert list(_short(trajectory)) == wanted
  assert not skips


# How a turn holds its thinking.
_THOUGHTS = {
  **{
    key: {**_A, key: "why"}
    for key in ("reasoning_content", "reasoning", "thinking")
  },
  "block": {**_A, "content": "<think>\nwhy\n</think>\n\na"},
  "end tag": {**_A, "content": "why\n</think>\n\na"},
  "key and block": {**_A, "content": "<think>why</think>a", "thinking": "why"},
  "blocks": {
    **_A,
    "reasoning_content": "why",
    "thinking_blocks": [
      {"type": "thinking", "thinking": "why", "signature": "x"}
    ],
  },
  "details": {
    **_A,
    "reasoning_details": [{"type": "reasoning.text", "text": "why"}],
  },
  "part": {
    "role": "assistant",
    "content": [
      {"type": "thinking", "thinking": "why", "signature": "x"},
      {"type": "redacted_thinking", "data": "x"},
      {"type": "text", "text": "a"},
    ],
  },
  "harmony text": {
    "role": "assistant",
    "content": "<|channel|>analysis<|message|>why<|end|><|start|>assistant"
    "<|channel|>final<|message|>a<|return|>",
  },
}


@pytest.mark.parametrize("name", _THOUGHTS)
def test_thinking_is_in_no_content(name):
  (trajectory,), _ = _read({"messages": [_Q, _THOUGHTS[name]]})
  turn = trajectory.messages[1]
  assert (turn.reasoning, turn.content) == ("why", "a")


def test_channels_of_one_turn_are_one_message():
  said = [
    {"role": "assistant", "channel": "analysis", "content": "why"},
    {"role": "assistant", "channel": "final", "content": "a"},
  ]
  (trajectory,), _ = _read({"messages": [_Q, *said]})
  assert [m.role for m in trajectory.messages] == ["user", "assistant"]
  assert trajectory.messages[1].reasoning == "why"


@pytest.mark.parametrize(
  "mark",
  [
    {"loss": False}, {"train": False}, {"trainable": False}, {"weight": 0},
    {"loss_weight": 0.0}, {"loss_mask": 0},
  ],
)  # fmt: skip
def test_marks_of_training(mark):
  (trajectory,), _ = _read({"messages": [_Q, {**_A, **mark}, _Q, _DONE]})
  assert [m.context for m in trajectory.messages] == [False, True, False, False]
  (key,) = mark
  (trajectory,), _ = _read({"messages": [_Q, {**_A, key: 1}]})
  assert not trajectory.messages[1].context


# Columns of a row -> its reward and its success.
_OUTCOMES = [
  ({}, None, None),
  ({"reward": 1}, 1.0, True),
  ({"reward": 0.5}, 0.5, False),
  ({"score": 0.0}, 0.0, False),
  ({"score": 8}, None, None),
  ({"resolved": 0}, None, False),
  ({"resolved": True}, None, True),
  ({"resolved": "False"}, None, False),
  ({"is_correct": 1.0, "reward": 0.2}, 0.2, True),
  ({"label": False}, None, False),
  ({"label": "travel"}, None, None),
  ({"metadata": {"resolved": False}}, None, False),
  ({"success": None, "info": {"reward": 1.0}}, 1.0, True),
]


@pytest.mark.parametrize(("columns", "reward", "success"), _OUTCOMES)
def test_outcomes(columns, reward, success):
  (trajectory,), _ = _read({"messages": [_Q, _A], **columns})
  assert (trajectory.reward, trajectory.success) == (reward, success)


def test_zero_is_an_id():
  row = {"id": 0, "task_id": 0, "messages": [_Q, _A]}
  (trajectory,), _ = _read(row)
  assert (trajectory.id, trajectory.task_id) == ("r:0", "0")


_FLAT = _TOOL["function"]


@pytest.mark.parametrize(
  "columns",
  [
    {"tools": [_TOOL]},
    {"tools": [_FLAT]},
    {"tools": json.dumps([_TOOL])},
    {"tools": [json.dumps(_TOOL)]},
    {"tools": _TOOL},
    {"tools": [{**_FLAT, "parameters": json.dumps(_FLAT["parameters"])}]},
    {"functions": [_FLAT]},
    {"available_tools": [_TOOL], "tools": [_FLAT]},
    {"tools": [
      {"name": "f", "description": "d", "input_schema": _FLAT["parameters"]}
    ]},
  ],
)  # fmt: skip
def test_schemas(columns):
  (trajectory,), _ = _read({"messages": [_Q, _A], **columns})
  assert trajectory.tools == (_TOOL,)


@pytest.mark.parametrize(
  "listed", [json.dumps(_TOOL), json.dumps([_TOOL]), str([_TOOL])]
)
def test_schemas_of_a_system_text(listed):
  text = f"Signatures are in <tools></tools>:\n<tools>\n{listed}\n</tools>\nGo."
  system = {"role": "system", "content": text}
  (trajectory,), _ = _read({"messages": [system, _Q, _A]})
  assert trajectory.tools == (_TOOL,)
  # They are rendered from the schemas: what is left says the rest.
  assert trajectory.messages[0].content == (
    "Signatures are in <tools></tools>:\nGo."
  )


def _arguments(arguments, schema, arrow=False):
  tool = {"name": "f", "parameters": schema} if schema else None
  row = {**_said(_native({"name": "f", "arguments": arguments}))}
  (trajectory,), _ = _read({**row, "tools": tool and [tool]}, arrow=arrow)
  return json.loads(trajectory.messages[1].tool_calls[0].arguments)


def test_nulls_of_a_table_are_no_arguments():
  city = {"type": "object", "properties": {"city": {"type": "string"}}}
  free = {"type": ["string", "null"]}
  held = {"city": "Paris", "date": None}
  assert _arguments(held, None) == {"city": "Paris"}
  assert _arguments(held, city) == {"city": "Paris"}
  day = {"type": "object", "properties": {**city["properties"], "date": free}}
  assert _arguments(held, day, arrow=True) == held
  # A table's null where none can be; JSON's was written by someone.
  day["properties"]["date"] = {"type": "string"}
  assert _arguments(held, day, arrow=True) == {"city": "Paris"}
  assert _arguments(held, day) == held
  needed = {**day, "required": ["date"]}
  assert _arguments(held, needed, arrow=True) == held
  # Text is what a model wrote.
  assert _arguments(json.dumps(held), None, arrow=True) == held


def test_nulls_of_a_table_are_no_schema():
  date = {"name": "f", "parameters": {"properties": {"date": None}, "x": None}}
  (trajectory,), _ = _read({"messages": [_Q, _A], "tools": [date]})
  assert trajectory.tools[0]["function"] == {
    "name": "f", "parameters": {"properties": {}},
  }  # fmt: skip


# What a row holds that no record would -> what the line names.
_REFUSED = {
  "image part": (
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, _A]},
    "messages[0].content[0]: image part",
  ),
  "image key": (
    {"messages": [{"role": "user", "content": [{"image": "x"}]}, _A]},
    "messages[0].content[0].image: 'x'; image part",
  ),
  "images": ({"messages": [_Q, _A], "images": ["x"]}, "row.images: ['x']"),
  "image in a result": (
    {
      "messages": [
        _Q,
        {
          "role": "assistant",
          "content": [
            {"type": "tool_use", "id": "x", "name": "f", "input": {}}
          ],
        },
        {
          "role": "user",
          "content": [
            {
              "type": "tool_result",
              "tool_use_id": "x",
              "content": [{"type": "image", "source": {}}],
            }
          ],
        },
        _A,
      ]
    },
    "messages[2].content[0].content[0]: image part",
  ),
  "document": (
    {"messages": [{"role": "user", "content": [{"type": "document"}]}, _A]},
    "messages[0].content[0]: part of type 'document'",
  ),
  "key": ({"messages": [_Q, {**_A, "plan": "x"}]}, "messages[1].plan: 'x'"),
  "calls of a user": (
    {"messages": [{**_Q, "tool_calls": [_F]}, _A]},
    "messages[0].tool_calls: ",
  ),
  "role": (
    {"messages": [_Q, {"role": "critic", "content": "x"}, _A]},
    "messages[1].role: 'critic'; expected one of system",
  ),
  "no role": ({"messages": [_Q, {"content": "x"}]}, "messages[1]: no role"),
  "null": ({"messages": [_Q, None, _A]}, "messages[1]: None"),
  "number": ({"messages": [_Q, {**_A, "content": 3}]}, "messages[1].content"),
  "unknown id": (
    _said(_native(_F), _result(tool_call_id="zz")),
    "'zz' is the id of no call",
  ),
  "a result too many": (
    _said(_native(_F, ids=False), _result(), _result()),
    "answers no open call",
  ),
  "another function's result": (
    _said(_native(_F, ids=False), _result(name="g")),
    "answers no open call of g",
  ),
  "arguments": (
    _said(_native({"name": "f", "arguments": [1]})),
    "messages[1].tool_calls[0].arguments: [1]",
  ),
  "two arguments": (
    _said({**_A, "tool_calls": [{**_F, "args": {"b": 1}}]}),
    "both arguments and args",
  ),
  "uses": (_said({**_A, "tool_uses": 0.5}), "messages[1].tool_uses: 0.5"),
  "key of a call": (
    _said({**_A, "tool_calls": [{**_F, "note": "x"}]}),
    "messages[1].tool_calls[0].note: 'x'",
  ),
  "custom tool": (
    _said({**_A, "tool_calls": [{"type": "custom", "name": "f"}]}),
    "messages[1].tool_calls[0].type: 'custom'",
  ),
  "other calls under two keys": (
    _said({**_native(_F), "function_call": _G}),
    "calls under two keys, not the same",
  ),
  "cut call": (
    _said({**_A, "content": '<tool_call>{"name"'}),
    "messages[1].content: '<tool_call>",
  ),
  "text behind a call": (
    _said({**_A, "content": f"{_hermes(_F)} and so on"}),
    "messages[1].content: 'and so on'",
  ),
  "a call that is none": (
    _said({**_A, "content": "<tool_call>{x}</tool_call>"}),
    "messages[1].content.tool_call[0]: '{x}' is not JSON",
  ),
  "another markup": (
    _said({**_A, "content": "<functioncall> {}"}),
    "holds '<functioncall>', a call that is not read",
  ),
  "thinking without end": (
    _said({**_A, "content": "<think>x"}),
    "messages[1].content: <think> is never closed",
  ),
  "channel": (
    _said({**_A, "channel": "radio"}),
    "messages[1].channel: 'radio'",
  ),
  "two chats": (
    {"messages": [_Q, _A], "conversations": _shared(("human", "x"))},
    "row.conversations: ",
  ),
  "a pair of preference": (
    {"messages": [_Q, _A], "rejected": [_DONE]},
    "row.rejected: ",
  ),
  "two system prompts": (
    {"system": "x", "messages": [{"role": "system", "content": "y"}, _Q, _A]},
    "row.system: another text",
  ),
  "tools by name": (
    {"messages": [_Q, _A], "tools": ["f"]},
    "row.tools[0]: 'f'; expected a function schema",
  ),
  "other tools under two keys": (
    {"messages": [_Q, _A], "tools": [_TOOL], "functions": [_G]},
    "row: tools under two keys, not the same",
  ),
  "outcome": (
    {"messages": [_Q, _A], "resolved": "maybe"},
    "row.resolved: 'maybe'; expected true or false",
  ),
  "outcomes": (
    {"messages": [_Q, _A], "resolved": True, "success": False},
    "resolved say different things",
  ),
  "reward": ({"messages": [_Q, _A], "reward": "x"}, "row.reward: 'x'"),
  "no reward": (
    {"messages": [_Q, _A], "reward": float("nan")},
    "reward: nan; expected a finite number",
  ),
  "mark": ({"messages": [_Q, {**_A, "loss": "no"}]}, "messages[1].loss: 'no'"),
  "empty demonstration": (
    {"messages": [_Q, {**_A, "content": " "}]},
    "only empty assistant turns",
  ),
  "nothing to learn": (
    {"messages": [_Q, {**_A, "loss": False}]},
    "no assistant turn",
  ),
  "no messages": ({"messages": []}, "messages: []; expected a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_refused_by_name(name):
  row, named = _REFUSED[name]
  found, (skip,) = _read(row)
  assert not found
  assert skip.where == "1"
  assert named in skip.reason and "\n" not in skip.reason


def test_empty_keys_are_no_content():
  empty = {"plan": None, "images": [], "audio": {}, "note": "", "refusal": None}
  row = {"messages": [{**_Q, **empty}, {**_A, **empty}], **empty}
  (trajectory,), skips = _read(row)
  assert (len(trajectory.messages), skips) == (2, [])
