"""A profile in parts: the bytes of one, or one line that says why not."""

import shutil

import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax import stages
from pivotrl_jax.pivots import parts


def _config(small, **changes):
  config = swe.get_config("tiny")
  config.model.path = small
  config.select = "random"
  config.data.trajectories = 5
  # Some prompts are longer: rows of skipped.jsonl.
  config.data.max_prompt_tokens = 316
  config.profile.update({"group_size": 2, "trajectories_per_batch": 2})
  config.rollout.max_tokens = 4
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
  """A folder with a whole profile, and the same in two parts."""
  folder = tmp_path_factory.mktemp("parts")
  before = ["import", "candidates"]
  main.run(_config(small), folder / "before", before)
  for name in ("1/2", "2/2", ""):
    path = folder / (f"part{name[0]}" if name else "whole")
    shutil.copytree(folder / "before", path)
    main.run(_config(small, **{"profile.part": name}), path, ["profile"])
  return folder


def _merged(small, made, path, *names, **changes):
  shutil.copytree(made / "before", path)
  given = ",".join(str(made / name) for name in names)
  config = _config(small, **{"profile.parts": given} | changes)
  main.run(config, path, ["profile", "select"])


def test_merged_parts_are_the_whole(small, made, tmp_path):
  _merged(small, made, tmp_path / "w", "part[12]")
  for name in ("profiles.jsonl", "skipped.jsonl"):
    whole = (made / "whole" / name).read_bytes()
    assert whole and (tmp_path / "w" / name).read_bytes() == whole
  counts = [
    (made / f"part{i}" / "profiles.jsonl").read_bytes().count(b"\n")
    for i in (1, 2)
  ]
  assert min(counts) > 0
  assert sum(counts) == _whole_rows(made)
  # The record is that of a profile made here: nothing is made again.
  main.run(_config(small), tmp_path / "w", ["profile", "select"])
  moved = {p.name for p in (tmp_path / "w").glob("previous/*/*")}
  assert moved <= {"config.json"}


def _whole_rows(made):
  """Rows of the whole profile."""
  return (made / "whole" / "profiles.jsonl").read_bytes().count(b"\n")


@pytest.mark.parametrize(
  ("names", "changes", "words"),
  [
    (["part1"], {}, ["1 of 2 parts", "2/2"]),
    (["part1", "part2", "again"], {}, ["again", "2/2", "part2", "once"]),
    (["part*", "whole"], {}, ["whole", "no finished part"]),
    (["part1", "nowhere"], {}, ["nowhere", "not there"]),
    (["part[12]"], {"seed": 3}, ["another profile", "seed 0 instead of 3"]),
    (["part[12]"], {"profile.trajectories_per_batch": 3}, ["2 instead of 3"]),
  ],
)
def test_other_parts_are_refused(small, made, tmp_path, names, changes, words):
  if not (made / "again").exists():
    shutil.copytree(made / "part2", made / "again")
  with pytest.raises(errors.InputError) as error:
    _merged(small, made, tmp_path / "w", *names, **changes)
  for word in words:
    assert word in str(error.value)
  assert not (tmp_path / "w" / "profiles.jsonl").exists()


def test_an_edited_part_is_refused(small, made, tmp_path):
  shutil.copytree(made / "part2", tmp_path / "edited")
  (tmp_path / "edited" / "profiles.jsonl").write_text("")
  with pytest.raises(errors.InputError, match="edited: profiles.jsonl was"):
    _merged(small, made, tmp_path / "w", "part1", str(tmp_path / "edited"))


def test_parts_cover_batches_once():
  batches = list(range(7))
  # 7 * 1 // 3 = 2, 7 * 2 // 3 = 4.
  assert [parts.own(f"{i}/3", batches) for i in (1, 2, 3)] == [
    [0, 1],
    [2, 3],
    [4, 5, 6],
  ]
  assert parts.own("", batches) == batches
  assert parts.own("3/9", batches) == [1]  # 7 * 2 // 9 = 1, 7 * 3 // 9 = 2.
  assert parts.parse("0/3") is parts.parse("4/3") is parts.parse("1") is None


def test_a_part_is_followed_by_nothing(small):
  config = _config(small, **{"profile.part": "1/2"})
  assert stages.default(config) == ("import", "candidates", "profile")
