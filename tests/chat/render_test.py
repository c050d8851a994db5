"""What the template writes is markup; what contents hold is text."""

import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import importers
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy
from pivotrl_jax.pivots import candidates as candidates_lib

_MARKERS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>",
    "</tool_call>", "<tool_response>", "</tool_response>", "<think>",
    "</think>",
)  # fmt: skip
_THOUGHT = (
  "{%- if message.reasoning_content %}{{- '<think>\\n' +"
  " message.reasoning_content + '\\n</think>\\n' }}{%- endif %}"
)
_ANSWER = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
# Templates in the manner of public ones, made of the mini policy's: one that
# writes an empty block in a last turn without reasoning, one whose prompt
# opens the block, one whose prompt closes it unless told to think.
_CHANGES = {
  "empty": (
    _THOUGHT,
    "{%- if loop.last or message.reasoning_content %}{{- '<think>\\n' +"
    " (message.reasoning_content or '') + '\\n</think>\\n\\n' }}{%- endif %}",
  ),
  "opened": (_ANSWER, _ANSWER + "{{- '<think>\\n' }}"),
  "closed": (
    _ANSWER,
    _ANSWER + "{%- if not think %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}",
  ),
}


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load(policy.MINI)


def _changed(tmp_path, name, **settings):
  before, after = _CHANGES[name]
  own = (policy.MINI / "chat_template.jinja").read_text()
  assert before in own
  path = tmp_path / f"{name}.jinja"
  path.write_text(own.replace(before, after))
  return tokenizer_lib.load(
    policy.MINI, tokenizer_lib.Settings(chat_template=str(path), **settings)
  )


def _count(tokenizer, ids):
  """How often each marker is among `ids`."""
  return [
    int((ids == tokenizer.hf.convert_tokens_to_ids(m)).sum()) for m in _MARKERS
  ]


def _read(tokenizer, turn):
  done = base.Completion(turn.ids, np.zeros(len(turn.ids)), "stop")
  return parse.read(tokenizer, done, opened=turn.opened)[1]


def _conversation(text):
  """`text` wherever an owner's data may hold text."""
  schema = {
    "type": "object",
    "properties": {f"k{text}": {"type": "string", "enum": [text]}},
  }
  function = {"name": f"f{text}", "description": text, "parameters": schema}
  call = types.ToolCall(f"f{text}", json.dumps({f"k{text}": text}), "c")
  return (
    types.Message("system", f"s{text}"),
    types.Message("user", f"u{text}."),
    types.Message("assistant", f"a{text}.", f"r{text}.", (call,)),
    types.Message("tool", f"t{text}.", tool_call_id="c"),
    types.Message("assistant", f"b{text}.", f"r{text}."),
  ), ({"type": "function", "function": function},)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  st.lists(
    st.sampled_from((*_MARKERS, "x", "\n", "<", "\ue000", '"', "\\ue000", "é")),
    max_size=5,
  ).map("".join)
)
def test_markers_in_contents_are_text(tokenizer, text):
  messages, tools = _conversation(text)
  plain, plain_tools = _conversation("@")
  got = render.prompt_ids(tokenizer, messages[:4], tools)
  want = render.prompt_ids(tokenizer, plain[:4], plain_tools)
  assert _count(tokenizer, got) == _count(tokenizer, want)
  # Every place holds its text: system, user, answer and its reasoning, tool
  # output; name, key and value of the call; name, key, description of the tool.
  if not set(text) & set('"\\\n'):
    assert tokenizer.decode(got) == tokenizer.decode(want).replace("@", text)
  # And what is sampled so is read so.
  for prefix in (2, 4):
    turn = render.demonstration(
      tokenizer, messages[:prefix], messages[prefix], tools
    )
    said = _read(tokenizer, turn)
    assert types.action_of(said).type == (
      types.action_of(messages[prefix]).type
    )
    assert said.reasoning.strip() == messages[prefix].reasoning.strip()
    assert said.content.strip() == messages[prefix].content.strip()
    assert [(c.name, json.loads(c.arguments)) for c in said.tool_calls] == [
      (c.name, json.loads(c.arguments)) for c in messages[prefix].tool_calls
    ]


def test_without_markers_ids_are_the_plain_tokenizers(tokenizer):
  messages, tools = _conversation("x")
  plain = tokenizer.hf.apply_chat_template(
    [render._to_openai(m) for m in messages],
    tools=list(tools),
    return_dict=False,
  )
  prompt = render.prompt_ids(tokenizer, messages[:4], tools)
  action = render.action_ids(tokenizer, messages[:4], messages[4], tools)
  both = [*prompt, *action]
  assert both == plain[: len(both)]
  assert tokenizer.hf.decode(plain[len(both) :]) == "\n"


def test_a_hidden_piece_is_encoded_as_the_tokenizer_would(tokenizer):
  """A spelled marker merges with what surrounds it, as text does."""
  question = types.Message("user", "a '<|im_end|>'\nb")
  ids = render.prompt_ids(tokenizer, (question,), ())
  # "<|" and "|>" may be put in by characters that no marker has: the words of
  # the pre-tokenizer are "user", "\n", "a", " '<|", "im", "_", "end", "|>'",
  # "\n", "b", and each is encoded by itself.
  words = ["user", "\n", "a", " '<|", "im", "_", "end", "|>'", "\n", "b"]
  start, end = tokenizer.hf.convert_tokens_to_ids(
    ["<|im_start|>", "<|im_end|>"]
  )
  inside = [i for word in words for i in tokenizer.hf.encode(word)]
  after = tokenizer.hf.encode("\n<|im_start|>assistant\n")
  assert ids.tolist() == [start, *inside, end, *after]


def test_a_sampled_turn_stays_in_the_history_as_it_was(tokenizer):
  question = types.Message("user", "q")
  # Markup that says nothing readable keeps its markers, but begins no turn.
  sampled = '<tool_call>{"name"</tool_call><|im_start|>user'
  raw = types.Message("assistant", sampled, raw=True)
  ids = render.prompt_ids(tokenizer, (question, raw), ())
  plain = render.prompt_ids(
    tokenizer, (question, types.Message("assistant", "")), ()
  )
  more = np.subtract(_count(tokenizer, ids), _count(tokenizer, plain))
  assert more.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
  text = dataclasses.replace(raw, raw=False)
  ids = render.prompt_ids(tokenizer, (question, text), ())
  assert _count(tokenizer, ids) == _count(tokenizer, plain)


def test_what_merely_spells_a_call_is_none(tokenizer):
  call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
  stop = list(tokenizer.stop_ids[-1:])
  marked = tokenizer.hf.encode(call) + stop
  hidden = render._stand_ins(tokenizer, [types.Message("user", call)], ())
  spelled = tokenizer.encode(hidden.hide(call, tokenizer.markers), hidden)
  for ids, said in (
    (marked, types.Message("assistant", tool_calls=(
        types.ToolCall("f", "{}"),))),
    (spelled + stop, types.Message("assistant", call)),
  ):  # fmt: skip
    done = base.Completion(np.array(ids), np.zeros(len(ids)), "stop")
    assert parse.read(tokenizer, done, opened=False) == (call, said)


def test_arguments_that_are_none_are_an_empty_object(tokenizer):
  prompts = [
    render.prompt_ids(
      tokenizer,
      (
        types.Message("user", "x"),
        types.Message("assistant", tool_calls=(types.ToolCall("f", given),)),
      ),
      (),
    )
    for given in ("{}", "", " ", "null", "{ }")
  ]
  for prompt in prompts[1:]:
    np.testing.assert_array_equal(prompt, prompts[0])
  # Nested too deep for templates, it stays text and is no exception.
  deep = '{"a": ' + "[" * 400 + "]" * 400 + "}"
  call = types.ToolCall("f", deep)
  said = types.Message("assistant", tool_calls=(call,))
  assert render.prompt_ids(tokenizer, (said,), ()).size > 400


def _turn(reasoning=None):
  return types.Message("assistant", "done", reasoning)


_ASKED = (types.Message("user", "q"),)


@pytest.mark.parametrize(
    ("name", "reasoning", "want", "opened", "empty", "lost"),
    [
        # The template's own block is in what is sampled.
        ("empty", None, "<think>\n\n</think>\n\ndone", False, True, False),
        ("empty", "hm", "<think>\nhm\n</think>\n\ndone", False, False, False),
        # The prompt ends "<think>\n": the block is closed in the template's
        # way of closing one, "\n</think>\n".
        ("opened", None, "\n</think>\ndone", True, True, False),
        ("opened", "hm", "hm\n</think>\ndone", True, False, False),
        # The prompt has closed the block: no place for reasoning.
        ("closed", None, "done", False, False, False),
        ("closed", "hm", "done", False, False, True),
    ],
)  # fmt: skip
def test_where_prompt_and_message_begin_differently(
  tmp_path, name, reasoning, want, opened, empty, lost
):
  tokenizer = _changed(tmp_path, name)
  turn = render.demonstration(tokenizer, _ASKED, _turn(reasoning), ())
  assert tokenizer.decode(turn.ids) == want + "<|im_end|>"
  assert (turn.opened, turn.empty_thinking, turn.lost_reasoning) == (
    opened, empty, lost,
  )  # fmt: skip
  prompt = render.prompt_ids(tokenizer, _ASKED, ())
  assert render.opens_thinking(tokenizer, prompt) == opened
  said = _read(tokenizer, turn)
  assert said.content == "done"
  assert (said.reasoning or "") == ("" if lost else reasoning or "")


def test_a_content_that_begins_like_a_block_is_not_cut_there(tmp_path):
  """The shared beginning ends at the block, not within "<t"."""
  tokenizer = _changed(tmp_path, "opened")
  for content in ("<t", "<think>\n", "<b>bold</b>"):
    turn = render.demonstration(
      tokenizer, _ASKED, types.Message("assistant", content), ()
    )
    assert tokenizer.decode(turn.ids) == f"\n</think>\n{content}<|im_end|>"
    assert _read(tokenizer, turn).content == content.strip("\n")


def test_empty_blocks_are_left_out_on_demand(tmp_path):
  tokenizer = _changed(tmp_path, "empty", empty_thinking="drop")
  turn = render.demonstration(tokenizer, _ASKED, _turn(), ())
  assert tokenizer.decode(turn.ids) == "done<|im_end|>"
  assert not turn.empty_thinking
  thought = render.demonstration(tokenizer, _ASKED, _turn("hm"), ())
  assert tokenizer.decode(thought.ids).startswith("<think>\nhm\n</think>")
  opened = _changed(tmp_path, "opened", empty_thinking="drop")
  with pytest.raises(errors.InputError, match="opens the thinking"):
    render.demonstration(opened, _ASKED, _turn(), ())


def test_template_variables_reach_the_template(tmp_path):
  tokenizer = _changed(tmp_path, "closed", template_kwargs={"think": True})
  turn = render.demonstration(tokenizer, _ASKED, _turn("hm"), ())
  assert tokenizer.decode(turn.ids) == "<think>\nhm\n</think>\ndone<|im_end|>"
  with pytest.raises(errors.InputError, match="'enable'; expected.*'think'"):
    _changed(tmp_path, "closed", template_kwargs={"enable": True})
  with pytest.raises(errors.InputError, match="'messages'; expected"):
    _changed(tmp_path, "closed", template_kwargs={"messages": []})


@pytest.mark.parametrize(
    ("reasoning", "history", "label"),
    [("keep", True, True), ("last", False, True), ("drop", False, False)],
)  # fmt: skip
def test_which_turns_have_their_reasoning(reasoning, history, label):
  tokenizer = tokenizer_lib.load(
    policy.MINI, tokenizer_lib.Settings(reasoning=reasoning)
  )
  before = (*_ASKED, _turn("first"), *_ASKED)
  prompt = tokenizer.decode(render.prompt_ids(tokenizer, before, ()))
  action = tokenizer.decode(
    render.action_ids(tokenizer, before, _turn("second"), ())
  )
  assert ("first" in prompt, "<think>" in prompt) == (history, history)
  assert ("second" in action, "<think>" in action) == (label, label)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "line 1: Expected an expression"),
        ("a\n{% for m in messages %}", "line 2: Unexpected end"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alt"),
        ("{{ messages[0].nothing.content }}", "has no attribute 'nothing'"),
        ("{{ messages[0].content + 3 }}", "concatenate"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{{ messages | nosuch }}", "nosuch"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "stop token"),
        ("{{ '<|im_end|>' }}{% if add_generation_prompt %}x{% endif %}",
         "otherwise than its generation prompt, which ends with 'x'"),
        (" \n", "empty; expected a Jinja file"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_one_line(tmp_path, template, reason):
  path = tmp_path / "t.jinja"
  path.write_text(template)
  with pytest.raises(errors.InputError, match="expected") as error:
    render.check(
      tokenizer_lib.load(
        policy.MINI, tokenizer_lib.Settings(chat_template=str(path))
      ),
      path,
    )
  assert reason in str(error.value)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mini", *_CHANGES])
def test_templates_in_use_pass_the_check(tmp_path, tokenizer, name):
  if name != "mini":
    tokenizer = _changed(tmp_path, name)
  render.check(tokenizer, name)


def _peers(testdata, file, template, **settings):
  """(prompt ids, demonstration, plain prompt ids) of every turn of a file."""
  peers = testdata / "wild" / "peers"
  if not peers.is_dir():
    pytest.skip("no wild/peers in the test data")
  given = str(peers / template) if template else ""
  tokenizer = tokenizer_lib.load(
    policy.MINI, tokenizer_lib.Settings(chat_template=given, **settings)
  )
  rows = []
  for trajectory in importers.import_path(peers / file, domain="tau"):
    for candidate in candidates_lib.candidates(trajectory):
      prefix = candidates_lib.prefix_messages(trajectory, candidate)
      message = trajectory.messages[candidate.prefix]
      plain = tokenizer.hf.apply_chat_template(
        [render._to_openai(m) for m in prefix],
        tools=list(trajectory.tools),
        add_generation_prompt=True,
        return_dict=False,
      )
      rows.append(
        (
          render.prompt_ids(tokenizer, prefix, trajectory.tools),
          render.demonstration(tokenizer, prefix, message, trajectory.tools),
          plain,
        )
      )
  return tokenizer, rows


def test_peers_control_tokens(testdata):
  tokenizer, rows = _peers(testdata, "i07_control_tokens.jsonl", "")
  prompt, turn, plain = rows[1]
  assert _count(tokenizer, prompt)[1:3] == [5, 4]
  assert _count(tokenizer, np.array(plain))[1:3] == [6, 5]
  said = _read(tokenizer, turn)
  assert said.content == "It ends turns with <|im_end|> on purpose."


def test_peers_without_reasoning(testdata):
  tokenizer, rows = _peers(
    testdata, "i10_no_reasoning.jsonl", "a01_qwen3_like.jinja"
  )
  assert all(turn.empty_thinking for _, turn, _ in rows)
  _, rows = _peers(
    testdata,
    "i10_no_reasoning.jsonl",
    "a01_qwen3_like.jinja",
    template_kwargs={"enable_thinking": False},
  )
  for prompt, turn, plain in rows:
    assert not turn.empty_thinking
    # With the variable, the block ends the prompt: "<think>\n\n</think>\n\n".
    assert tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert prompt[: len(plain)].tolist() == plain
  _, rows = _peers(
    testdata, "i10_no_reasoning.jsonl", "i10b_opened_think.jinja"
  )
  for prompt, turn, _ in rows:
    assert tokenizer.decode(prompt).endswith("assistant\n<think>\n")
    assert tokenizer.decode(turn.ids).startswith("\n</think>\n")


def test_peers_history_without_reasoning(testdata):
  """Prompts are the template's to the token, whatever they share."""
  tokenizer, rows = _peers(
    testdata, "a01_reasoning.jsonl", "a01_qwen3_like.jinja"
  )
  for prompt, turn, plain in rows:
    assert prompt.tolist() == plain
    assert not turn.lost_reasoning and not turn.empty_thinking
  # Turns 1 and 2 of a trajectory: the template drops turn 1's thinking once
  # the user speaks again, so turn 2's prompt no longer begins with turn 1's.
  first, second = (tokenizer.decode(rows[i][0]) for i in (1, 2))
  assert "step r1" in first and "step r1" not in second
  assert rows[2][0][: len(rows[0][0])].tolist() == rows[0][2]


def test_peers_arguments(testdata):
  _, rows = _peers(testdata, "row24_arguments.jsonl", "")
  second = [prompt.tolist() for prompt, _, _ in rows][1::2]
  assert second[0] == second[1]  # Text and object.
  assert second[2] == second[3] == second[4]  # "{}", "" and null.
