"""The out-of-domain suites: questions, graders, their power."""

import jax
import numpy as np
import pytest

from pivotrl_jax import types
from pivotrl_jax.engines import base as engines_base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import base as envs_base
from pivotrl_jax.evaluation import evaluate
from pivotrl_jax.evaluation import mixture
from pivotrl_jax.evaluation import suites
from pivotrl_jax.evaluation.suites import __main__ as command
from configs import swe

NAMES = tuple(suites.SUITES)
# Suites whose answers take code to be run: a few milliseconds each.
RUN = ("programs", "formulas")


def test_the_eight_stand_for_the_papers_eight():
  assert [s.STANDS_FOR for s in suites.SUITES.values()] == [
      "IFBench", "AIME25", "MATH500", "LiveCodeBench", "SciCode", "MMLU-Pro",
      "MMLU-ProX", "WMT24++",
  ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_400_are_held_out_and_the_splits_share_none(name):
  found = {
    s: suites.questions(name, s, 0, 400 if s == "eval" else 150)
    for s in envs_base.SPLITS
  }
  prompts = {s: {q.draft.prompt for q in qs} for s, qs in found.items()}
  assert [len(p) for p in prompts.values()] == [150, 150, 400]
  assert not prompts["eval"] & (prompts["train"] | prompts["validation"])
  assert not prompts["train"] & prompts["validation"]
  assert found["eval"][:30] == suites.questions(name, "eval", 0, 30)
  assert found["eval"][:30] != suites.questions(name, "eval", 1, 30)
  ids = {q.id for qs in found.values() for q in qs}
  assert len(ids) == 700
  if name != "knowledge":  # The answers of the others are texts.
    short = sum(len(q.draft.answer) < 3 for q in found["eval"])
    assert short == 0


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_right_and_those_of_others_are_not(name):
  asked = suites.questions(name, "eval", 0, 25 if name in RUN else 200)
  assert all(suites.grade(q, q.draft.answer) for q in asked)
  assert all(suites.grade(q, f"\n{q.draft.answer} \n") for q in asked)
  others = [q.draft.answer for q in asked[1:] + asked[:1]]
  wrong = [suites.grade(q, a) for q, a in zip(asked, others, strict=True)]
  # Of five letters one in five is right by chance.
  assert np.mean(wrong) < (0.35 if name == "knowledge" else 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_written_is_graded(name):
  question = suites.questions(name, "eval", 0, 1)[0]
  for text in ("", " ", "\ud800", "\x00", "9" * 6000, "-", "a" * 10_000,
               "```python\n```", "def f(", "import os\nos._exit(0)", "{}",
               ",,,", "=" * 99, "é", "None", question.draft.prompt):  # fmt: skip
    assert suites.grade(question, text) is False


@pytest.mark.parametrize(
    ("name", "check", "text", "right"),
    [
        ("instructions", {"exact": "A, B"}, "A, B", True),
        ("instructions", {"exact": "A, B"}, "a, b", False),
        ("instructions", {"letter": "b", "count": 2}, "bank, bell", True),
        ("instructions", {"letter": "b", "count": 2}, "bank, bank", False),
        ("instructions", {"letter": "b", "count": 2}, "bank bell", False),
        ("instructions", {"letter": "b", "count": 2}, "bank, able", False),
        ("instructions", {"count": 3, "end": "owl"}, "a big owl", True),
        ("instructions", {"count": 3, "end": "owl"}, "a big owl.", False),
        ("instructions", {"count": 3, "end": "owl"}, "owl owl owl", False),
        ("arithmetic", {"result": "29"}, "60 - 31 = 29", True),
        ("arithmetic", {"result": "29"}, "It is 029.", True),
        ("arithmetic", {"result": "29"}, "29 or 30", False),
        ("arithmetic", {"result": "29"}, "-29", False),
        ("contest", {"result": "0"}, "7 % 7 = 0", True),
        ("contest", {"result": "12"}, "gcd 12", True),
        ("knowledge", {"letter": "C"}, "c.", True),
        ("knowledge", {"letter": "C"}, "C or D", False),
        ("languages", {"answer": "Athènes"}, " athènes.", True),
        ("languages", {"answer": "Athènes"}, "Athenes", False),
        ("languages", {"answer": "Athènes"}, "B: Athènes", False),
        ("translation", {"answer": "Der Hund malt."}, "der hund  malt", True),
        ("translation", {"answer": "Der Hund malt."}, "Den Hund malt", False),
    ],
)  # fmt: skip
def test_graders(name, check, text, right):
  assert suites.SUITES[name].grade(check, text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("def f(a, b):\n  return b + a * 3", True),
        ("```python\ndef f(a, b):\n  return 3 * a + b\n```", True),
        ("Here:\n```\ndef f(x, y):\n  return x + x + x + y\n```\nDone.", True),
        ("def f(a, b):\n  return 3 * b + a", False),
        ("def g(a, b):\n  return 3 * a + b", False),
        ("def f(a, b):\n  return '11'", False),
        ("def f(a, b):\n  while True:\n    a = b", False),
        ("def f(a, b):\n  return open('/etc/passwd')", False),
        ("def f(a):\n  return 3 * a", False),
    ],
)  # fmt: skip
def test_programs_are_run(text, right):
  check = {"calls": ["f(2, 5)", "f(7, 1)"],
           "code": "def f(a, b):\n  return a * 3 + b"}  # fmt: skip
  assert suites.SUITES["programs"].grade(check, text) is right
  assert suites.SUITES["formulas"].grade(check, text) is right


def test_formulas_are_equal_but_for_rounding():
  check = {"calls": ["f(7, 11)"], "code": "def f(a, b):\n  return a * b / 3"}
  assert suites.SUITES["formulas"].grade(check, "def f(a, b):\n  return a / 3"
                                         " * b")  # fmt: skip


# Subject and object in each language and gender, with what goes with them.
@pytest.mark.parametrize(
    ("phrase", "german", "french", "spanish"),
    [
        (("king", True, "sad"), "den traurigen König", "le roi triste",
         "al rey triste"),
        (("child", False, "tired"), "ein müdes Kind", "un enfant fatigué",
         "un niño cansado"),
        (("bird", True, None), "den Vogel", "l'oiseau", "el pájaro"),
        (("car", False, "green"), "ein grünes Auto", "une voiture verte",
         "un coche verde"),
        (("queen", True, None), "die Königin", "la reine", "a la reina"),
        (("table", False, "white"), "einen weißen Tisch", "une table blanche",
         "una mesa blanca"),
    ],
)  # fmt: skip
def test_objects_are_declined(phrase, german, french, spanish):
  t = suites.SUITES["translation"]
  noun = next(n for n in t.NOUNS if n.english == phrase[0])
  said = [t._object(i, (noun, *phrase[1:])) for i in range(3)]
  assert said == [german, french, spanish]


def test_the_mixture_has_every_world_and_suite_and_goes_on_anywhere():
  found = [mixture.chat(i, 0) for i in range(120)]
  assert {c.source for c in found} == set(mixture.SHARES)
  assert mixture.chat(77, 0) == found[77]
  assert mixture.chat(77, 1) != found[77]
  assert all(c.messages[-1].role != "system" for c in found)
  only = [mixture.chat(i, 0, shares={"contest": 1.0}) for i in range(5)]
  assert [c.source for c in only] == ["contest"] * 5
  prompts = {c.messages[0].content for c in only}
  held = {q.draft.prompt for q in suites.questions("contest", "eval", 0, 400)}
  assert len(prompts) == 5 and not prompts & held
  assert only[0].messages[-1].role == "assistant"


def test_show_prints_samples(capsys):
  assert command.main(["contest", "--show=2"]) == 0
  printed = capsys.readouterr().out
  assert printed.startswith("=== contest, for AIME25\n")
  assert printed.count("\n-> ") == 2
  assert command.main(["riddles", "--show=2"]) == 2
  assert "suite 'riddles'; expected some of instr" in capsys.readouterr().err


def test_noise_is_as_large_as_it_is_said_to_be():
  params = {"a": np.linspace(-1, 1, 20_000, dtype=np.float32),
            "b": np.ones(5000, np.float32)}  # fmt: skip
  noisy = command.disturbed(params, 0.5, 0)
  for name, spread in (("a", params["a"].std()), ("b", 1.0)):
    noise = noisy[name] - params[name]
    np.testing.assert_allclose(noise.std(), 0.5 * spread, rtol=0.05)
  for name in params:
    still = command.disturbed(params, 0.0, 0)[name]
    np.testing.assert_array_equal(still, params[name])


class _Reciting:
  """An engine that knows answers by heart while it is left undisturbed."""

  def __init__(self, policy, asked):
    self._answers = [
      policy.tokenizer.hf.encode(q.draft.answer, add_special_tokens=False)
      for q in asked
    ]
    self._policy, self._share = policy, 1.0

  def load(self, weights, version):
    """The more the weights are disturbed, the less is known."""
    pairs = zip(
      jax.tree.leaves(weights), jax.tree.leaves(self._policy.params),
      strict=True,
    )  # fmt: skip
    change = np.mean([np.abs(np.asarray(a) - b).mean() for a, b in pairs])
    self._share = max(0.0, 1.0 - 10 * change)

  def sample(self, prompts, sampling, row_seeds):
    stop = sampling.stop_ids[0]
    known = int(self._share * len(prompts))
    return [
      engines_base.Completion(
        np.array([*(ids if i < known else []), stop], np.int32),
        np.zeros(len(ids) + 1 if i < known else 1, np.float32),
        "stop",
      )
      for i, ids in enumerate(self._answers)
    ]


def test_power_falls_as_the_noise_grows():
  policy = policy_lib.load(policy_lib.MINI)
  asked = suites.questions("arithmetic", "eval", 0, 20)
  found = command.power(
    policy, _Reciting(policy, asked), ["arithmetic"], noise=(0.0, 0.1, 5.0),
    count=20, max_tokens=40,
  )  # fmt: skip
  first, second, third = (row["arithmetic"] for row in found)
  assert first == 1.0 > second > third
  head, body = command.power_table(found, (0.0, 0.1, 5.0), 20)
  assert head[1:] == ("noise 0 (95 %)", "noise 0.1 (95 %)", "noise 5 (95 %)")
  # Wilson's interval of 20 of 20: 20 / (20 + 1.96^2) = 0.839 to 1.
  assert body[0][:2] == ("arithmetic", "100.0 % (83.9 to 100.0)")
  assert body[1][:2] == ("mean", "100.0 %")


def test_a_run_asks_every_suite():
  config = swe.get_config("tiny")
  policy = policy_lib.load(policy_lib.MINI, config)
  # 26 over eight suites: 3 each, and the first two one more.
  config.evaluation.questions = 26
  counts = [4, 4, 3, 3, 3, 3, 3, 3]
  asked = [
    question
    for name, count in zip(NAMES, counts, strict=True)
    for question in suites.questions(name, "eval", 0, count)
  ]
  rows = evaluate._questions(config, policy, _Reciting(policy, asked), 0)
  assert [r["suite"] for r in rows] == [q.suite for q in asked]
  assert [r["task"] for r in rows] == [q.id for q in asked]
  assert all(r["success"] and r["split"] == "eval" for r in rows)


def test_what_cannot_be_read_is_no_answer():
  policy = policy_lib.load(policy_lib.MINI)
  chat = (types.Message("user", "Hi"),)
  ids = np.array(policy.tokenizer.hf.encode("<tool_call>x"), np.int32)
  cut = engines_base.Completion(ids, np.zeros(len(ids), np.float32), "length")

  class Engine:
    def sample(self, prompts, sampling, row_seeds):
      return [cut]

  said = evaluate.answers(policy, Engine(), [chat], [0], None)
  assert said == [(types.Action("message"), len(ids))]
