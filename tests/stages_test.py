"""What a stage's key holds: what decides its outputs, and nothing else."""

import pytest

from configs import swe
from pivotrl_jax import stages


def _config(**values):
  config = swe.get_config("tiny")
  config.update_from_flattened_dict(values)
  return config


@pytest.mark.parametrize(
    ("changed", "value", "touched"),
    [
        ("train.steps", 9, {"train", "evaluate", "report"}),
        ("train.log_every", 1, set()),
        ("train.parallel", "sharded", set()),
        ("engine.batch_rows", 8, set()),
        ("report.pivots", 3, {"report"}),
        ("verifier.single_step.allow_subset", True, set()),
        ("verifier.judge.model", "x", set()),
        ("warm_start.learning_rate", 1.0, set()),
        ("sft.turns", 3, set()),
        ("evaluation.tasks", 3, {"evaluate", "report"}),
        ("rollout.pivots_per_step", 3, {"train", "evaluate", "report"}),
        ("pivots.threshold", 0.5,
         {"select", "train", "evaluate", "report", "export"}),
        ("profile.group_size", 3,
         {"profile", "select", "train", "evaluate", "report", "export"}),
        ("data.max_prompt_tokens", 900,
         {"profile", "select", "train", "evaluate", "report", "export"}),
    ],
)  # fmt: skip
def test_lineage_tells_which_runs_share_a_stage(changed, value, touched):
  before, after = _config(), _config(**{changed: value})
  differ = {
    name
    for name in stages.STAGES
    if stages.lineage(before, name) != stages.lineage(after, name)
  }
  # Without a warm start that stage does not run.
  assert differ - {"warm_start"} == touched
