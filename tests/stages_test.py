"""What a stage's key holds: what decides its outputs, and nothing else."""

import pytest

from configs import swe
from pivotrl_jax import stages
from pivotrl_jax import workdir as workdir_lib


def _config(**values):
  config = swe.get_config("tiny")
  config.update_from_flattened_dict(values)
  return config


@pytest.mark.parametrize(
    ("changed", "value", "touched"),
    [
        ("train.steps", 9, {"train", "evaluate", "report", "rescore"}),
        ("e2e.max_turns", 3, set()),
        ("train.keep_groups", 0, set()),
        ("train.log_every", 1, set()),
        ("train.parallel", "sharded", set()),
        ("train.mesh.tensor", 2, set()),
        ("train.branch_tokens", 64, set()),
        ("train.lora_alpha", 1.0, set()),
        ("train.lora_rank", 4, {"train", "evaluate", "report", "rescore"}),
        ("train.freeze_router", True,
         {"train", "evaluate", "report", "rescore"}),
        ("train.router_count", "once", set()),
        ("engine.batch_rows", 8, set()),
        ("report.pivots", 3, {"report"}),
        ("verifier.single_step.allow_subset", True, set()),
        ("verifier.judge.model", "x", set()),
        ("warm_start.learning_rate", 1.0, set()),
        ("sft.turns", 3, set()),
        ("evaluation.tasks", 3, {"baseline", "evaluate", "report"}),
        ("rollout.pivots_per_step", 3,
         {"train", "evaluate", "report", "rescore"}),
        ("pivots.threshold", 0.5,
         {"select", "train", "evaluate", "report", "export", "rescore"}),
        ("profile.group_size", 3,
         {"profile", "select", "train", "evaluate", "report", "export",
          "rescore"}),
        ("data.max_prompt_tokens", 900,
         {"profile", "select", "train", "baseline", "evaluate", "report",
          "export", "rescore"}),
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


def test_a_warm_start_counts_by_what_it_made():
  off, on = _config(), _config(**{"warm_start.steps": 3})
  assert stages.needs(off, "profile") == ("import", "candidates")
  assert stages.needs(on, "profile") == ("import", "candidates", "warm_start")
  assert "model.path" in stages.given(off, "profile")
  assert "model.path" not in stages.given(on, "profile")
  # Turns are counted by the tokenizer that is given.
  assert "model.path" in stages.given(on, "candidates")
  # What it saw is profiled too, or not.
  reuse = _config(**{"warm_start.steps": 3, "warm_start.reuse": True})
  assert stages.lineage(on, "warm_start") == stages.lineage(reuse, "warm_start")
  assert stages.lineage(on, "profile") != stages.lineage(reuse, "profile")
  other = _config(**{"warm_start.steps": 3, "warm_start.learning_rate": 1.0})
  assert stages.given(on, "profile") == stages.given(other, "profile")
  assert stages.lineage(on, "profile") != stages.lineage(other, "profile")


def test_sft_reads_no_pivots():
  sft = _config(method="sft")
  assert stages.needs(sft, "train") == ("import", "candidates")
  assert set(stages.default(_config())) - set(stages.default(sft)) == {
    "profile", "select"
  }  # fmt: skip
  for name, value in (("train.clip_low", 0.1), ("verifier.name", "strict")):
    other = _config(method="sft", **{name: value})
    assert stages.lineage(sft, "train") == stages.lineage(other, "train")
    both = _config(), _config(**{name: value})
    assert len({str(stages.given(c, "train")) for c in both}) == 2


def test_contents_count_not_names_or_times(tmp_path):
  one, other = tmp_path / "one", tmp_path / "other"
  for folder in (one, other):
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "a.jsonl").write_text("{}\n")
    (folder / f".hidden-{folder.name}").write_text(folder.name)
  same = [
    stages.reads(
      _config(**{"data.format": "auto", "data.path": str(p)}), "import"
    )
    for p in (one, other)
  ]
  assert same[0] == same[1]
  (other / "x" / "a.jsonl").write_text("[]\n")
  assert workdir_lib.fingerprint(one) != workdir_lib.fingerprint(other)
  (other / "x" / "a.jsonl").write_text("{}\n")
  (other / "x" / "a.jsonl").rename(other / "x" / "b.jsonl")
  assert workdir_lib.fingerprint(one) != workdir_lib.fingerprint(other)
