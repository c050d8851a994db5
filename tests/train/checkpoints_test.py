"""A checkpoint is whole or not trusted: every kind of damage is said."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pivotrl_jax import errors
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import state as state_lib

_TX = state_lib.optimizer(
  learning_rate=1e-3, warmup_steps=2, weight_decay=0.0, clip_norm=1.0
)


def _state(value, width=8):
  kernel = jnp.full((4, width), value, jnp.float32)
  return state_lib.create({"dense": {"kernel": kernel}}, _TX)


def _open(workdir, keep=3, policy="p"):
  return checkpoints.Checkpoints(workdir, keep=keep, policy=policy)


def _save(workdir, steps, keep=3, policy="p"):
  with _open(workdir, keep, policy) as saved:
    for step in steps:
      saved.save(step, _state(step))


def _restore(workdir, state=None, policy="p"):
  with _open(workdir, policy=policy) as saved:
    return saved.restore_latest(_state(0) if state is None else state)


def _kernel(found):
  return np.asarray(found[1].params["dense"]["kernel"])


def test_the_newest_comes_back_and_old_ones_go(tmp_path, capfd):
  _save(tmp_path, [1, 2, 3, 4], keep=2)
  names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert names == ["3", "4"]
  capfd.readouterr()
  found = _restore(tmp_path)
  assert found[0] == 4
  np.testing.assert_array_equal(_kernel(found), np.full((4, 8), 4.0))
  assert jax.tree.structure(found[1]) == jax.tree.structure(_state(0))
  # No false alarm of a library either.
  assert capfd.readouterr().err == ""


def test_the_best_stay_beside_the_newest(tmp_path):
  scores = {1: 0.5, 2: None, 3: 0.9, 4: 0.5, 5: -1.0, 6: 0.1}
  with checkpoints.Checkpoints(
    tmp_path, keep=1, policy="p", keep_best=2
  ) as saved:
    for step, score in scores.items():
      saved.save(step, _state(step), score=score)
  names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert names == ["3", "4", "6"]  # Of 1 and 4, as good, the newer.
  assert _restore(tmp_path)[0] == 6


def test_turns_are_kept_with_a_checkpoint(tmp_path, caplog):
  with _open(tmp_path) as saved:
    saved.save(1, _state(1), turns=70)
  place = tmp_path / "checkpoints" / "1"
  assert checkpoints.turns(place) == 70 and not caplog.records
  file = place / "checksums.json"  # Of a version without them.
  row = json.loads(file.read_text())
  del row["turns"], row["sha256"]
  file.write_text(json.dumps(row | {"sha256": checkpoints._of_row(row)}))
  assert checkpoints.turns(place) == 0
  assert "did not count rollout turns" in caplog.text


def test_none_was_saved(tmp_path):
  assert _restore(tmp_path) is None


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def _largest(place):
  return max(place.glob("**/d/*"), key=lambda p: p.stat().st_size)


def _as_step(place, step):
  """A checksum file that says it is of another step, itself consistent."""
  checkpoints._write_checksums(place, step, {"policy": "p", "turns": 0})


# Damage of checkpoint 2 -> what the line must name.
_DAMAGES = {
    "a file is missing": (lambda p: (p / "_METADATA").unlink(), "_METADATA"),
    "a folder of it is missing": (
        lambda p: shutil.rmtree(p / "d"), "No such file"),
    "the checkpoint is missing": (shutil.rmtree, "missing"),
    "an empty folder is left": (
        lambda p: (shutil.rmtree(p), p.mkdir()), "checksums.json"),
    "data cut": (
        lambda p: os.truncate(_largest(p), 9), "9 bytes instead of"),
    "data of no length": (
        lambda p: os.truncate(_largest(p), 0), "0 bytes instead of"),
    "a bit of data": (lambda p: _flip(_largest(p)), "bytes changed"),
    "a bit of metadata": (lambda p: _flip(p / "_METADATA"), "_METADATA"),
    "a bit of the manifest": (
        lambda p: _flip(p / "manifest.ocdbt"), "manifest.ocdbt"),
    "checksums cut": (
        lambda p: os.truncate(p / "checksums.json", 99), "checksums.json"),
    "a bit of the checksums": (
        lambda p: _flip(p / "checksums.json"), "checksums.json"),
    "no checksums": (
        lambda p: (p / "checksums.json").unlink(), "checksums.json"),
    "checksums that are a list": (
        lambda p: (p / "checksums.json").write_text("[]"), "checksums.json"),
    "another step's": (lambda p: _as_step(p, 7), "holds step 7"),
    "a file that cannot be read": (
        lambda p: ((p / "_sharding").unlink(), (p / "_sharding").mkdir()),
        "_sharding"),
    "a file in place of the folder": (
        lambda p: (shutil.rmtree(p), p.write_text("")), "checksums.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", _DAMAGES)
def test_damage_falls_back_to_the_one_before_and_says_so(
  tmp_path, caplog, kind
):
  damage, named = _DAMAGES[kind]
  _save(tmp_path, [1, 2])
  damage(tmp_path / "checkpoints" / "2")
  found = _restore(tmp_path)
  assert found[0] == 1
  np.testing.assert_array_equal(_kernel(found), np.full((4, 8), 1.0))
  (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  assert named in line and "checkpoints/2" in line
  assert line.endswith("going on from step 1")
  # Step 2 is taken again beside what was set aside, and the next start is
  # silent.
  _save(tmp_path, [2])
  caplog.clear()
  assert _restore(tmp_path)[0] == 2
  assert not caplog.records


@pytest.mark.parametrize("kind", _DAMAGES)
def test_damage_of_the_only_one_is_one_line(tmp_path, kind):
  damage, named = _DAMAGES[kind]
  _save(tmp_path, [2])
  damage(tmp_path / "checkpoints" / "2")
  with pytest.raises(errors.InputError) as error:
    _restore(tmp_path)
  assert named in str(error.value) and "--redo=train" in str(error.value)
  assert "\n" not in str(error.value)


def test_all_checkpoints_gone_is_no_new_start(tmp_path):
  _save(tmp_path, [1, 2])
  shutil.rmtree(tmp_path / "checkpoints")
  with pytest.raises(errors.InputError, match="checkpoints/2: missing"):
    _restore(tmp_path)


def test_two_damaged_ones_are_named_each(tmp_path, caplog):
  _save(tmp_path, [1, 2, 3])
  for step in "23":
    _flip(_largest(tmp_path / "checkpoints" / step))
  assert _restore(tmp_path)[0] == 1
  assert len(caplog.records) == 2


def test_leftovers_of_a_kill_are_no_checkpoints(tmp_path, caplog):
  _save(tmp_path, [1, 2])
  folder = tmp_path / "checkpoints"
  # Killed while writing, before the checksums, and while dropping an old one.
  shutil.copytree(folder / "2", folder / "3.partial.orbax-checkpoint-tmp")
  shutil.copytree(folder / "2", folder / "3.partial")
  os.rename(folder / "1", folder / "1.partial")
  assert _restore(tmp_path)[0] == 2
  assert [p.name for p in folder.iterdir()] == ["2"]
  assert not caplog.records


def test_a_kill_between_the_rename_and_its_note_is_harmless(tmp_path):
  _save(tmp_path, [1, 2])
  (tmp_path / ".stages" / "train.newest").write_text("1\n")
  assert _restore(tmp_path)[0] == 2
  (tmp_path / ".stages" / "train.newest").unlink()
  assert _restore(tmp_path)[0] == 2


def test_a_checkpoint_of_another_shape_or_policy_is_one_line(tmp_path):
  _save(tmp_path, [1])
  with pytest.raises(errors.InputError, match=r"kernel has shape \(4, 8\)"):
    _restore(tmp_path, _state(0, width=9))
  more = state_lib.create(
    {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}, _TX
  )
  with pytest.raises(errors.InputError, match="bias has no value"):
    _restore(tmp_path, more)
  with pytest.raises(errors.InputError, match="policy p; expected q"):
    _restore(tmp_path, policy="q")
  fewer = state_lib.create({"dense": {}}, _TX)
  with pytest.raises(errors.InputError, match="kernel; expected a state"):
    _restore(tmp_path, fewer)


def test_find_takes_a_workdir_or_a_step_of_it(tmp_path):
  _save(tmp_path / "w", [1, 2])
  folder = tmp_path / "w" / "checkpoints"
  assert checkpoints.find(str(tmp_path / "w")) == folder / "2"
  assert checkpoints.find(f"{tmp_path}/w/1") == folder / "1"
  # A workdir whose name is a number.
  _save(tmp_path / "7", [3])
  assert checkpoints.find(f"{tmp_path}/7").name == "3"
  for place in ("/nowhere", f"{tmp_path}/w/3", str(tmp_path)):
    with pytest.raises(errors.InputError, match="train.init.*is missing"):
      checkpoints.find(place)


def test_contents_go_with_a_copy(tmp_path):
  _save(tmp_path / "w", [1, 2])
  shutil.copytree(tmp_path / "w", tmp_path / "x")
  first, second, copied = (
    checkpoints.contents(checkpoints.find(f"{tmp_path}/{place}"))
    for place in ("w/1", "w/2", "x/2")
  )
  assert first != second == copied


def test_a_full_disk_is_one_line(small_disk):
  disk = small_disk("200k")
  width = 65536  # 1 MiB of each of three arrays.
  rows = np.random.default_rng(0).normal(size=(4, width))
  state = _state(0, width).replace(params={"dense": {"kernel": rows}})
  with _raises_full(), _open(disk) as saved:
    saved.save(1, state)
  assert not (disk / "checkpoints" / "1").exists()


@pytest.mark.parametrize("at", ["save", "wait_until_finished"])
def test_a_disk_full_at_a_small_file_is_one_line(tmp_path, monkeypatch, at):
  # Beside the arrays orbax writes small files, by calls that raise OSError:
  # which of the two meets the full disk first is a matter of chance.
  def full(*_):
    monkeypatch.undo()  # orbax says an error once.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(ocp.StandardCheckpointer, at, full)
  with _raises_full(), _open(tmp_path) as saved:
    saved.save(1, _state(1))
  assert not (tmp_path / "checkpoints" / "1").exists()


def _raises_full():
  line = "1.partial: cannot write: No space left on device; what is complete"
  return pytest.raises(errors.InputError, match=line)
