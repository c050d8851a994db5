"""The table of a mini policy: what is said, and of which steps."""

import json

import pytest

from launchers import mini_table
from launchers import train_mini_policy
from pivotrl_jax.data import records
from pivotrl_jax.evaluation.suites import __main__ as suites_command


def test_losses_are_means_of_equal_stretches():
  rows = [{"step": 10 * (i + 1), "loss": float(i)} for i in range(20)]
  head, body = mini_table.losses(rows)
  assert head == ("step", "loss")
  # 20 rows in 8 stretches: their ends are rows 2, 5, 7, 10, 12, 15, 17, 20.
  # The first holds 0 and 1, the second 2, 3, 4, the last 17, 18, 19.
  assert [b[0] for b in body] == [
    "20", "50", "70", "100", "120", "150", "170", "200"
  ]  # fmt: skip
  assert [body[0][1], body[1][1], body[-1][1]] == ["0.5000", "3.0000", "18.0000"]
  assert mini_table.losses(rows[:1]) == (head, [("10", "0.0000")])


@pytest.fixture
def branch(tmp_path):
  """A training that went on after its decay."""
  found = tmp_path / "decay-20"
  (found / "export").mkdir(parents=True)
  for folder, steps in ((tmp_path, (10, 20, 30)), (found, (25,))):
    rows = [{"step": step, "loss": step / 10} for step in steps]
    records.write_jsonl(folder / train_mini_policy.LOSSES, rows)
  options = train_mini_policy.parser().parse_args(
    ["--workdir=x", "--steps=20", "--decay=5", "--tokens=64"]
  )
  settings = vars(options) | {"parameters": 12_345}
  (found / train_mini_policy.SETTINGS).write_text(json.dumps(settings))
  return found


def test_the_readme_says_what_was_measured_and_how(branch):
  measured = {"tau": {"policy": 0.5, "zero variance": 0.71, "all fail": 0.2}}
  noise = suites_command.NOISE
  accuracies = {"contest": [0.8 - n for n in noise]}
  place = mini_table.write(
    branch, measured, accuracies, tasks=10, questions=100
  )
  text = place.read_text()
  assert "A Qwen3 of 12,345 parameters, width 160, 5 layers" in text
  assert "--steps=20 --decay=5 --learning_rate=0.01" in text
  # Step 30 came after the branch.
  assert "| 10 | 1.0000 |\n| 20 | 2.0000 |\n| 25 | 2.5000 |\n\n" in text
  # Wilson's interval of 5 of 10: 0.5 -+ 0.263.
  assert "| tau | 50.0 % (23.7 to 76.3) | 71 % | 20 % |" in text
  # Of 80 of 100: 0.711 to 0.867.
  assert "| contest | 80.0 % (71.1 to 86.7) |" in text
  assert f"noise {noise[-1]:g} (95 %)" in text
