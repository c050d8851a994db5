"""Calls as code, without backslashes."""

import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.report import code


def _call(**arguments):
  return types.ToolCall("f", json.dumps(arguments))


@pytest.mark.parametrize(
  ("call", "want"),
  [
    (_call(), "f()"),
    (types.ToolCall("f", ""), "f()"),
    (_call(pattern="def g(", n=3, all=None, deep=True),
     'f(pattern="def g(", n=3, all=null, deep=true)'),
    (_call(say='a "b"'), "f(say='a \"b\"')"),
    (_call(old="x\n  y", new="", lines=[1, {"at": "z\nw"}]),
     "f(\n  old:\n    x\n      y\n  new: \"\"\n  lines:\n    - 1\n    -\n"
     "      at:\n        z\n        w\n)"),
    (types.ToolCall("f", "{bad"), "f({bad)"),
    (types.ToolCall("f", "[1]"), "f([1])"),
  ],
)  # fmt: skip
def test_calls(call, want):
  assert code.call(call) == want


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ('See.\n<tool_call>{"name": "f", "arguments": {"a": "\\\\d\\n"}}</tool_call>',
     "See.\nf(\n  a:\n    \\d\n    \n)"),
    ("<think>so</think>yes", "(thinking)\nso\n(end of thinking)\nyes"),
    ('{"commands": [{"keys": "ls\\n"}], "done": false}',
     "commands:\n  -\n    keys:\n      ls\n      \ndone: false"),
    ("<tool_call>{bad", "<tool_call>{bad"),  # No action.
    ("plain", "plain"),
  ],
)  # fmt: skip
def test_what_was_sampled(text, want):
  assert code.sampled(text) == want


def test_deep_values_stay_as_they_are():
  text = '{"a":' * 900 + "1" + "}" * 900
  assert code.content(text) == text
  assert code.call(types.ToolCall("f", text)) == f"f({text})"
