"""Rendering, parsing, and the mini policy's own template."""

import json
import time

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import trees
from pivotrl_jax.engines import policy
from pivotrl_jax.envs import worlds


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load(policy.MINI)


def test_prefixes_of_an_episode_nest_and_actions_continue_them(tokenizer):
  trajectory = worlds.demonstrate("swe", 3, "train", 0, poor=0.3)
  prompts = []
  for i, message in enumerate(trajectory.messages):
    if message.role != "assistant":
      continue
    prefix = trajectory.messages[:i]
    prompts.append(render.prompt_ids(tokenizer, prefix, trajectory.tools))
    action = render.action_ids(tokenizer, prefix, message, trajectory.tools)
    assert action[-1] in tokenizer.stop_ids
    said = parse.parse(render.completion_text(tokenizer, action))
    assert types.action_of(said) == types.action_of(
      types.Message(
        "assistant",
        message.content,
        tool_calls=tuple(
          types.ToolCall(c.name, c.arguments) for c in message.tool_calls
        ),
      )
    )
    if i + 2 < len(trajectory.messages):
      longer = render.prompt_ids(
        tokenizer, trajectory.messages[: i + 2], trajectory.tools
      )
      both = np.concatenate([prompts[-1], action])
      np.testing.assert_array_equal(longer[: len(both)], both)
  trie = trees.build(prompts)
  assert len(trie.tokens) == max(map(len, prompts)) - 1


def test_a_missing_tokenizer_is_one_line(tmp_path):
  with pytest.raises(errors.InputError, match="no tokenizer; expected") as e:
    tokenizer_lib.load(tmp_path)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>{}", "unclosed_tool_call"),
        ("<tool_call>{</tool_call>", "tool_call_not_json"),
        ("<tool_call>[]</tool_call>", "tool_call_not_object"),
        ("<tool_call>{}</tool_call>", "tool_call_without_name"),
        ('<tool_call>{"name": 3}</tool_call>', "tool_call_without_name"),
        ('<tool_call>{"name": "f", "arguments": 3}</tool_call>',
         "tool_call_arguments_not_object"),
        ('<tool_call>{"name": "f"}</tool_call> and', "text_after_tool_call"),
        ("<think>hm", "unclosed_think"),
        ("a </tool_call>", "stray_markup"),
        ("a <think> b", "stray_markup"),
    ],
)  # fmt: skip
def test_what_is_no_action(text, reason):
  assert parse.parse(text) == types.ParseFailure(reason, text)


def test_golden():
  text = (
    "<think>\nlook\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "f", "arguments": {"b":1,  "a": [2]}}\n</tool_call>\n'
    '<tool_call>{"name": "g"}</tool_call>'
  )
  # The arguments keep the very text, blanks and order included.
  assert parse.parse(text) == types.Message(
      "assistant", "I look.", "look",
      (types.ToolCall("f", '{"b":1,  "a": [2]}'), types.ToolCall("g", "{}")),
  )  # fmt: skip


_CALL = '<tool_call>{"name": "f", "arguments": {"a": "%s"}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "said"),
    [
        # Reasoning may quote a call, whoever opened it.
        (f"or {_CALL % 1}?\n</think>\n\n{_CALL % 2}", False, True, "2"),
        (f"or {_CALL % 1}?\n</think>\n\n{_CALL % 2}", True, True, "2"),
        (f"<think>or {_CALL % 1}?</think>{_CALL % 2}", False, True, "2"),
        (f"{_CALL % 1}\n</think>\n\n{_CALL % 2}", True, True, "2"),
        # It may quote its own end.
        ("a </think> b</think>c", True, True, "c"),
        ("<think>a </think> b</think>c", False, True, "c"),
        # An end of thinking in an argument ends nothing.
        (_CALL % "</think>", False, False, "</think>"),
        (f"a</think>{_CALL % '</think>'}", True, True, "</think>"),
        (f"a</think>{_CALL % '</think>'}", False, True, "</think>"),
        (f"<think>a</think>{_CALL % '</think>'}", False, True, "</think>"),
        # An opened block that never ends is no turn, JSON or not.
        ("only thoughts", True, None, "unclosed_think"),
        ('{"a": 1}', True, None, "unclosed_think"),
        (_CALL % "</think>", True, None, "unclosed_think"),
        # A broken call does not become a message by what it holds.
        ('<tool_call>{"a": "</think>"} x', False, None, "unclosed_tool_call"),
        ("a <think> b </think> c", False, None, "stray_markup"),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_reasoning(text, opened, reasoning, said):
  found = parse.parse(text, opened=opened)
  if reasoning is None:
    assert found == types.ParseFailure(said, text)
    return
  assert (found.reasoning is not None) == reasoning
  if found.tool_calls:
    (call,) = found.tool_calls
    assert json.loads(call.arguments) == {"a": said}
    assert not found.content
  else:
    assert found.content == said


@pytest.mark.parametrize(
  ("written", "arguments"),
  [('""', ""), ("null", "{}"), ("{}", "{}"), ('"{}"', "{}")],
)
def test_arguments_that_are_none(written, arguments):
  text = f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
  assert parse.parse(text).tool_calls == (types.ToolCall("f", arguments),)


_JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)
_PLAIN = st.text(
  st.characters(blacklist_characters="<>", blacklist_categories=["Cs"])
).map(str.strip)


@hypothesis.given(
  _PLAIN,
  st.lists(
    st.tuples(
      st.text(st.characters(codec="ascii", categories=["L"]), min_size=1),
      st.dictionaries(st.text(max_size=5), _JSON, max_size=3),
    ),
    max_size=3,
  ),
)
def test_parse_inverts_writing(content, calls):
  message = types.Message(
    "assistant",
    content,
    tool_calls=tuple(
      types.ToolCall(name, json.dumps(arguments)) for name, arguments in calls
    ),
  )
  text = content + "".join(
    f'<tool_call>{{"name": "{c.name}", "arguments": {c.arguments}}}</tool_call>'
    for c in message.tool_calls
  )
  hypothesis.assume("<tool_call>" not in content)
  assert parse.parse(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        '<tool_call>{"name": "f", "arguments": ' + "9" * 100_000,
        '<tool_call>{"name": "f", "arguments": {"a": '
        + "9" * 100_000 + "}}</tool_call>",
        "\ud800<tool_call>" * 10_000,
        '"arguments": {' * 10_000,
        "<tool_call></think>" * 10_000 + "</tool_call>",
        "<tool_call></think></tool_call>" * 10_000,
        "</think>" * 50_000,
    ],
    ids=range(9),
)  # fmt: skip
def test_hostile_output_is_read_quickly(text):
  started = time.process_time()
  parse.parse(text)
  parse.parse(text, opened=True)
  assert time.process_time() - started < 0.2
