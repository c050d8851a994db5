"""The production verifiers' own answers, on the shared cases."""

import json

import pytest

from pivotrl_jax import errors
from pivotrl_jax.verifiers import cases

VERIFIERS = {
  "single_step": 557,
  "swe_pivot": 367,
  "terminus_judge": 337,
  "terminal_multi_harness": 276,
}
# Cases without a recorded divergence that contradict one that has it (the
# same defect, mended there): table "Deliberate differences" of the notes.
CONTRADICTORY = {
  "single_step": {"0164", "0166", "0167", "0170", "0331"},
  "swe_pivot": {"0088", "0098", "0481", "0482", "0515"},
  "terminus_judge": {"0044", "0058", "0090", "0105", "0196", "0496", "0511"},
  "terminal_multi_harness": {
    "0049", "0069", "0070", "0375", "0440", "0443", "0448", "0453",
  },
}  # fmt: skip


def _scored(testdata, name, setting):
  """(number, the case, our reward) of each case."""
  with open(testdata / "conformance" / f"{name}.jsonl") as lines:
    for line in lines:
      case = json.loads(line)
      try:
        reward = cases.read({**case, "setting": setting}).score().reward
      except errors.InputError:  # A label that the original refuses too.
        reward = 0.0
      yield case["id"].rpartition("/")[2], case, reward


@pytest.mark.parametrize("name", VERIFIERS)
def test_compat_gives_the_original_rewards(testdata, name):
  """Where the original raised or refused, nothing is earned."""
  scored = list(_scored(testdata, name, "compat"))
  assert len(scored) == VERIFIERS[name]
  wrong = [
    (number, reward, case["reward"])
    for number, case, reward in scored
    if reward is None or abs(reward - (case["reward"] or 0.0)) > 1e-9
  ]
  assert not wrong


@pytest.mark.parametrize("name", VERIFIERS)
def test_default_mends_the_recorded_defects_and_nothing_else(testdata, name):
  wrong = set()
  for number, case, reward in _scored(testdata, name, "default"):
    want = case.get("divergence", {}).get("preferred_reward", case["reward"])
    # A stub judge that says neither label: no reward, where the original has 0.
    if abs((reward or 0.0) - (want or 0.0)) > 1e-9:
      wrong.add(number)
  assert wrong == CONTRADICTORY[name]
