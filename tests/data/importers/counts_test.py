"""Import counts equal those that the data's READMEs state."""

import pytest

from pivotrl_jax.data import importers
from pivotrl_jax.data.importers import __main__ as table

# Path below data/ -> (trajectories, turns, share of turns with a tool call,
# share of successes or None). Where the README's table counts otherwise, the
# comment says how.
_COUNTS = {
    "tau2_bench/sft_v1_small/sft-v1-small.json.gz": (37, 467, 0.42, 1.00),
    "tau2_bench/results/claude-sonnet-4.5_airline.json.gz": (
        35, 320, 0.47, 0.74),
    "tau2_bench/results/gpt-4.1-sft_airline.json.gz": (11, 136, 0.52, 0.55),
    "tau2_bench/results/gpt-4.1-sft_retail.json.gz": (27, 338, 0.48, 0.89),
    "tau2_bench/results/gpt-4.1-sft_telecom.json.gz": (28, 675, 0.63, 0.71),
    "tau2_bench/results/gpt-4.1-sft_telecom_no-user.json.gz": (
        28, 453, 1.00, 0.79),
    "tau2_bench/results/gpt-4.1_airline.json.gz": (11, 120, 0.42, 0.55),
    "tau2_bench/results/gpt-4.1_retail.json.gz": (27, 295, 0.48, 0.85),
    "tau2_bench/results/gpt-4.1_telecom.json.gz": (28, 431, 0.33, 0.46),
    "tau2_bench/results/gpt-4.1_telecom_no-user.json.gz": (
        28, 419, 1.00, 0.43),
    "tau2_bench/results/qwen2.5-7b_airline.json.gz": (35, 463, 0.34, 0.17),
    # The SFT rows that are in two formats count once.
    "tau2_bench": (295, 4117, None, None),
    "tau_bench": (132, 1671, 0.47, 0.40),
    "nemo_gym/search/finance_sec_search.rollouts.jsonl.gz": (4, 23, 1.0, 1.0),
    "nemo_gym/search/google_search.rollouts.jsonl.gz": (4, 8, 0.5, 0.5),
    "nemo_gym/swe/anyswe_hermes.rollouts.jsonl.gz": (5, 73, 0.93, 0.4),
    # The README counts 4 and asks importers to refuse them: no prompt.
    "nemo_gym/swe/deep_swe.rollouts.jsonl.gz": (0, 0, None, None),
    "nemo_gym/swe/mini_swe_agent_2.rollouts.jsonl.gz": (4, 40, 1.0, 0.25),
    "nemo_gym/swe/swe_agents_openhands.rollouts.jsonl.gz": (
        4, 114, 1.0, 0.25),
    "nemo_gym/tau/conversational_tool_use_simulation.rollouts.jsonl.gz": (
        4, 26, 0.42, 0.5),
    "nemo_gym/tau/tau2_agent.rollouts.jsonl.gz": (3, 16, 0.81, 1.0),
    "nemo_gym/tau/tau2_synth.rollouts.jsonl.gz": (4, 50, 0.64, 0.5),
    "nemo_gym/tau/workplace_assistant.rollouts.jsonl.gz": (4, 10, 0.6, 0.75),
    "nemo_gym/terminal/anyterminal_hermes.rollouts.jsonl.gz": (
        4, 56, 0.93, 1.0),
    "nemo_gym/terminal/anyterminal_terminus2.rollouts.jsonl.gz": (
        4, 20, 1.0, 0.75),
    "nemo_gym/terminal/harbor_terminus2.rollouts.jsonl.gz": (
        2, 29, 0.83, 0.5),
    "mini_swe_agent/deepseek_chat_test_1-100": (67, 5556, 1.00, 0.60),
    "mini_swe_agent/deepseek_reasoner_dev": (9, 552, 1.00, None),
    "openhands/claude-3-5-sonnet_swe-bench-verified": (34, 810, 0.97, 0.41),
    # The logs of all calls are of two runs that the other folder has too.
    "openhands": (34, 810, 0.97, 0.41),
    "swe_agent": (15, 174, 1.00, None),
    "swe_smith/pandas-dev__pandas.95280573.pr_53856.traj.gz": (
        1, 17, 1.0, None),
    "swe_smith/pydantic__pydantic.acb0f10f.pr_8316.traj.gz": (
        1, 22, 1.0, 1.0),
    "openthoughts_terminus": (35, 195, 0.93, None),
    "harbor_atif/openhands": (1, 2, 1.00, None),
    # 26 in the README: 20 turns and 6 copied steps, which are context.
    "harbor_atif/terminus_2": (7, 20, None, None),
    "webdancer": (141, 296, 0.52, None),
    "mirorl": (96, 217, 0.56, 0.61),
    "smolagents": (35, 73, 1.00, 0.89),
}  # fmt: skip


@pytest.mark.parametrize("path", _COUNTS)
def test_counts(testdata, path):
  trajectories, turns, calls, success = _COUNTS[path]
  found = [
    item
    for item in importers.import_path(testdata / "data" / path)
    if not isinstance(item, importers.Skip)
  ]
  assert len({t.id for t in found}) == len(found) == trajectories
  total = table.collections.Counter()
  for row in table.counts(found).values():
    total.update(row)
  assert total["turns"] == turns
  if calls is not None:
    assert total["tool-call turns"] / turns == pytest.approx(calls, abs=0.0051)
  if success is not None:
    share = total["success"] / total["judged"]
    assert share == pytest.approx(success, abs=0.0051)


def test_copied_steps_are_context(testdata):
  found = importers.import_path(testdata / "data/harbor_atif/terminus_2")
  said = [m for t in found for m in t.messages if m.role == "assistant"]
  assert len(said) == 26
  assert sum(m.context for m in said) == 6


def test_everything_left_out_has_a_reason(testdata):
  skips = {}
  for folder in sorted((testdata / "data").iterdir()):
    if folder.is_dir():
      for item in importers.import_path(folder):
        if isinstance(item, importers.Skip):
          skips.setdefault(folder.name, []).append(item)
  assert {name: len(found) for name, found in skips.items()} == {
    "harbor_atif": 2,  # Other agents' own formats, as examples.
    "mini_swe_agent": 4,  # Timed out before the first turn.
    "nemo_gym": 4,  # deep_swe: no prompt.
    "openhands": 2,  # The same runs in two logs.
    "tau2_bench": 39,  # The SFT rows once more as OpenAI JSONL; two .toml.
  }
  assert all(s.reason and s.file for found in skips.values() for s in found)


def test_command_prints_the_table(testdata, capsys):
  assert table.main([str(testdata / "data" / "swe_smith")]) == 0
  out = capsys.readouterr().out
  # 17 + 22 turns of the two .traj files, 44 + 22 of the two XML rows.
  assert "| swe_agent:swe_smith | 2 | 39 | 39 | 39 | 0.50 (n=2) |" in out
  assert "| all | 4 | 105 | 105 | 105 |" in out
  assert table.main([str(testdata / "none")]) == 2
  assert "no such file or folder" in capsys.readouterr().err
