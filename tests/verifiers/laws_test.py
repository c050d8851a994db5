"""What must hold of every verifier in its default setting, by hypothesis."""

import json
import random
import time

import hypothesis
from hypothesis import strategies as st
import pytest

from pivotrl_jax import types
from pivotrl_jax.verifiers import verify

TEXT = st.text(min_size=1, max_size=40).filter(str.strip)
LEAVES = st.one_of(
  st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40)
)
VALUES = st.recursive(
  LEAVES,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3)
  ),
  max_leaves=4,
)
ARGUMENTS = st.dictionaries(
  st.sampled_from(["query", "path", "n", "items", "when", "text"]),
  VALUES,
  max_size=3,
)
ANY_TOOL = {"type": "object"}
MANY = hypothesis.settings(max_examples=500)
# Verifier -> (name of a tool, arguments) of demonstrations it can tell apart.
CALLS = {
  "single_step": st.tuples(st.just("f"), ARGUMENTS),
  "strict": st.tuples(st.just("f"), ARGUMENTS),
  "swe_pivot": st.one_of(
    st.tuples(
      st.just("str_replace_editor"),
      st.fixed_dictionaries(
        {
          "command": st.sampled_from(["str_replace", "create", "view"]),
          "path": TEXT,
          "old_str": st.text(max_size=60),
          "new_str": st.text(max_size=60),
        }
      ),
    ),
    st.tuples(st.just("bash"), st.fixed_dictionaries({"command": TEXT})),
    st.tuples(
      st.just("grep"), st.fixed_dictionaries({"pattern": TEXT, "path": TEXT})
    ),
    st.tuples(
      st.just("view_file"),
      st.fixed_dictionaries(
        {
          "path": TEXT,
          "view_range": st.lists(st.integers(-1, 300), min_size=2, max_size=2),
        }
      ),
    ),
    st.tuples(st.just("unheard_of"), ARGUMENTS),
  ),
  "terminal_multi_harness": st.one_of(
    st.tuples(st.just("exec_command"), st.fixed_dictionaries({"cmd": TEXT})),
    st.tuples(
      st.just("update_plan"),
      st.fixed_dictionaries({"plan": st.lists(VALUES, max_size=3)}),
    ),
    st.tuples(st.just("unheard_of"), ARGUMENTS),
  ),
}
TOOLS = [
  {"type": "function", "name": name, "parameters": ANY_TOOL}
  for name in ("exec_command", "update_plan", "unheard_of", "other")
]


def call(name, arguments):
  return types.ToolCall(name, json.dumps(arguments))


def single(*calls):
  kind = "function_call" if len(calls) == 1 else "function_call_batch"
  return types.Action(kind, calls=calls)


def score(verifier, demonstration, action, **config):
  return verify.verify(
    verifier,
    demonstration,
    action,
    tools=TOOLS,
    config=config,
    row={"harness": "codex"},
  ).reward


@pytest.mark.parametrize("verifier", CALLS)
def test_the_demonstration_replayed_scores_one(verifier):
  @MANY
  @hypothesis.given(CALLS[verifier])
  def law(drawn):
    demonstration = single(call(*drawn))
    assert score(verifier, demonstration, demonstration) == 1.0

  law()


@pytest.mark.parametrize("verifier", CALLS)
def test_key_order_and_white_space_change_nothing(verifier):
  @MANY
  @hypothesis.given(CALLS[verifier], CALLS[verifier], st.randoms())
  def law(drawn, other, rng):
    def reorder(value):
      if isinstance(value, dict):
        items = [(k, reorder(v)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
      return [reorder(x) for x in value] if isinstance(value, list) else value

    demonstration = single(call(*drawn))
    name, arguments = other
    spelt = json.dumps(reorder(arguments), indent=3, separators=(" ,", " : "))
    again = single(types.ToolCall(name, f" \n{spelt}\t"))
    assert score(verifier, demonstration, again) == score(
      verifier, demonstration, single(call(*other))
    )

  law()


@pytest.mark.parametrize("verifier", [v for v in CALLS if v != "strict"])
def test_an_undecodable_call_earns_nothing(verifier):
  @MANY
  @hypothesis.given(CALLS[verifier], st.data())
  def law(drawn, data):
    name, arguments = drawn
    hypothesis.assume(arguments)
    text = json.dumps(arguments)
    torn = text[: data.draw(st.integers(0, len(text) - 1))]
    action = single(types.ToolCall(name, torn))
    assert score(verifier, single(call(*drawn)), action) == 0.0

  law()


@pytest.mark.parametrize("verifier", CALLS)
@pytest.mark.parametrize("mode", ["off", "f1", "fractional", "binary_strict"])
def test_an_extra_wrong_call_never_raises_a_reward(verifier, mode):
  """With both gates open: a closed one asks for the right count first."""
  config = {}
  if verifier == "single_step" and mode != "off":
    config = {
      "parallel_tool_call_rewarding": True,
      "parallel_tool_call_reward_mode": mode,
      "allow_subset": True,
      "allow_superset": True,
    }
  elif mode != "off":
    pytest.skip("one mode only")

  @MANY
  @hypothesis.given(
    st.lists(CALLS[verifier], min_size=1, max_size=3),
    st.lists(CALLS[verifier], min_size=1, max_size=3),
  )
  def law(wanted, made):
    demonstration = single(*(call(*d) for d in wanted))
    calls = [call(*d) for d in made]
    wrong = call("other", {"nonsense": 1})
    before = score(verifier, demonstration, single(*calls), **config)
    after = score(verifier, demonstration, single(*calls, wrong), **config)
    assert after <= before

  law()


NASTY = {
  "huge text": json.dumps({"query": "ab\n" * 33_000, "cmd": "x y" * 33_000}),
  "random text": json.dumps(
    {
      "command": "".join(random.Random(0).choices("abcd \n", k=100_000)),
      "cmd": "".join(random.Random(1).choices("abcd \n", k=100_000)),
    }
  ),
  "deep list": '{"query":' + "[" * 50_000 + "]" * 50_000 + "}",
  "deep object": '{"a":' * 900 + "1" + "}" * 900,
  "unclosed": '{"query":' * 10_000,
  "huge integer": '{"query": ' + "9" * 100_000 + "}",
  "large integer": '{"query": ' + "9" * 4_000 + ', "n": 1e999}',
  "many keys": json.dumps({str(i): i for i in range(8_000)}),
  "surrogate": '{"query": "\\ud800 \\udc00\\ud800", "cmd": "\\ud8ff"}',
  "raw surrogate": '{"query": "\ud800 x", "command": "\udfff x"}',
  "nan": '{"query": NaN, "cmd": -Infinity, "path": 1e400}',
  "null": "null",
  "text": '"command"',
  "empty": "",
  "control": '{"cmd": "\\u0000\\u001b[2J"}',
  "thoughts": "</think>{" * 11_000,
}


@pytest.mark.parametrize(
  ("said", "reward"),
  [
    # Of 4 and 8 words 3 are shared: 3 / 12 = 0.25.
    ("Sorry, I can't cancel it: it is late.", 1),
    ("That is $28 in all.", 0),  # Another number.
    ("It is 5 PM.", 0),
    ("One moment.", 0),  # 0 / 6.
    # 1 / 13 = 0.077, and 1 / 14 = 0.071.
    ("It won't do; we close at ten sharp today.", 1),
    ("It won't do; we close at ten sharp today, friend.", 0),
  ],
)
def test_messages_by_words_and_numbers(said, reward):
  wanted = types.Action("message", content="It is too late.")
  got = types.Action("message", content=said)
  near = {"message_similarity_threshold": 0.075}
  assert score("single_step", wanted, got, **near) == reward
  assert score("single_step", wanted, got) == 1


@pytest.mark.parametrize("setting", verify.SETTINGS)
@pytest.mark.parametrize("kind", NASTY)
def test_no_output_raises_or_takes_a_tenth_of_a_second(kind, setting):
  """The best of three: the machine may be busy."""
  said = NASTY[kind]
  reply = json.dumps(
    {
      "analysis": "a",
      "plan": "p",
      "commands": [{"keystrokes": "make test\n" * 30}],
    }
  )
  demonstrations = {
    "single_step": single(call("f", {"query": "a b", "n": 1})),
    "swe_pivot": single(call("bash", {"command": "ls a/b " * 400})),
    "terminal_multi_harness": single(
      call("exec_command", {"cmd": "ls a/b " * 400})
    ),
    "terminus_judge": types.Action("message", reply),
    "strict": single(call("f", {"query": "a"})),
  }
  answered = json.dumps(
    {
      "analysis": "a",
      "plan": "p",
      "commands": [{"keystrokes": said}],
    }
  )
  for verifier, demonstration in demonstrations.items():
    config = {}
    actions = [types.Action("message", said), types.Action("message", answered)]
    if verifier == "terminus_judge":
      config = {"enable_llm_judge": False, "enable_string_similarity": True}
    else:
      name = demonstration.calls[0].name
      actions.append(single(types.ToolCall(name, said)))
      actions.append(single(*[types.ToolCall(name, said)] * 3))
    for action in actions:
      seconds = []
      for _ in range(3):
        start = time.perf_counter()
        verdict = verify.verify(
          verifier,
          demonstration,
          action,
          tools=TOOLS,
          config=config,
          setting=setting,
          row={"harness": "codex", "metadata": {"harness": "terminus_2"}},
        )
        seconds.append(time.perf_counter() - start)
      assert 0.0 <= verdict.reward <= 1.0
      assert min(seconds) < 0.1, (verifier, action.type, seconds)
