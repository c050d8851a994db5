"""Bad input of every kind: one clear line, status 2, nothing lost."""

import fcntl
import json
import multiprocessing
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile

import pytest

from pivotrl_jax.data import importers
from pivotrl_jax.engines import policy

ROOT = pathlib.Path(__file__).parent.parent


# Each run is a process of its own, forked where what `main` imports already is:
# the imports are most of such a run.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "absl.app", "ml_collections.config_flags", "pivotrl_jax.config_check",
    "pivotrl_jax.progress", "pivotrl_jax.chat.render", "pivotrl_jax.envs.swe",
])  # fmt: skip


def _main(arguments, environment, output):
  """`python -m pivotrl_jax.main`, its standard error in a file."""
  os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
  os.environ.update(environment)
  os.chdir(ROOT)
  sys.argv = ["main", *arguments]
  runpy.run_module("pivotrl_jax.main", run_name="__main__", alter_sys=True)


def _run(workdir, *args, config="configs/swe.py:tiny", **environment):
  arguments = [f"--config={config}", f"--workdir={workdir}", *args]
  with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
    process = _FORKS.Process(
      target=_main, args=(arguments, environment, output.name)
    )
    process.start()
    process.join()
    return subprocess.CompletedProcess(
      arguments, process.exitcode, stderr=output.read()
    )


def _one_line(done, *parts):
  assert done.returncode == 2, done.stderr
  lines = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert len(lines) == 1, done.stderr
  assert done.stderr.splitlines()[-1] == lines[0]
  assert "Traceback" not in done.stderr
  for part in parts:
    assert part in lines[0]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--wrokdir=x"], ["wrokdir"]),
        (["--config.trian.steps=3"], ["trian"]),
        (["--config.train.steps=many"], ["train.steps"]),
        (["--stages=import,trane"], ["trane", "expected", "train"]),
        (["--processes=2"], ["--processes=2", "HOST:PORT"]),
        (["--processes=2", "--process=2"], ["--process=2", "from 0"]),
        (["--processes=2", "--coordinator=a"], ["--coordinator=a", "PORT"]),
        (["--config.profile.part=1/2", "--stages=profile,select"],
         ["--stages=select", "profile.part=1/2", "profile.parts"]),
        (["--config.select=hard"], ["select", "'hard'", "difficult"]),
        (["--config.model.attention=flash"],
         ["model.attention", "'flash'", "pallas"]),
        (["--config.model.attention=cudnn"],
         ["model.attention", "cpu", "float32", "bfloat16"]),
        (["--config.engine.name=vllm"], ["engine.name", "'vllm'", "sglang"]),
        (["--config.engine.name=sglang", "--config.engine.urls=here:30000"],
         ["engine.urls", "here:30000", "http://"]),
        (["--config.engine.name=sglang", "--config.engine.stale=correct"],
         ["engine.stale", "importance_cap"]),
        (["--config.engine.release=True"], ["release", "sglang"]),
        (["--stages=dry_run", "--config.dry_run.meshes=64xh1"],
         ["dry_run.meshes", "64xh1", "64xh100 or v5p-64"]),
        (["--stages=serve", "--config.serve.host=nowhere.invalid"],
         ["serve.host", "nowhere.invalid", "expected a free address"]),
        (["--config.optimizer=sgd"], ["optimizer", "'sgd'", "natural"]),
        (["--config.optimizer=natural", "--config.method=sft"],
         ["optimizer", "'natural'", "adam", "method=sft"]),
        (["--config.natural.max_kl=0"], ["natural.max_kl", "0", "above 0"]),
        (["--config.rollout.group_size=1"], ["group_size", "1", "at least 2"]),
        (["--config.data.path=/nowhere", "--config.data.format=auto"],
         ["data.path", "/nowhere", "exists"]),
        (["--config.model.path=/nowhere"], ["model.path", "/nowhere"]),
        (["--config.pivots.threshold=1.5"], ["threshold", "1.5"]),
        (["--config.verifier.swe_pivot.similarty=1"], ["similarty"]),
        (["--config.verifier.name=terminus_judge"], ["judge.url"]),
        (["--config.data.reasoning=none"], ["reasoning", "'none'", "last"]),
        (["--config.data.empty_thinking=1"], ["empty_thinking", "keep, drop"]),
        (["--config.model.template_kwargs=enable_thinking=False"],
         ["template_kwargs", "JSON object", "enable_thinking"]),
        (['--config.model.template_kwargs={"enable_thinking": false}'],
         ["template_kwargs", "'enable_thinking'", "models/mini reads"]),
        (["--config.model.chat_template=~/nowhere"],
         ["chat_template", str(pathlib.Path.home()), "exists"]),
        (["--config.model.path=configs"], ["configs: no config.json"]),
    ],
    ids=lambda x: x[0] if isinstance(x[0], str) else "",
)  # fmt: skip
def test_bad_flags(tmp_path, args, parts):
  _one_line(_run(tmp_path / "w", *args), *parts)
  assert not (tmp_path / "w" / "trajectories.jsonl").exists()


@pytest.mark.parametrize(
    ("config", "part"),
    [("configs/none.py", "none.py"), ("configs/swe.py:huge", "huge"),
     ("configs/swe.py:seed=x", "seed=x"), ("configs/tau.py:paper", "data.path")],
)  # fmt: skip
def test_bad_config_files(tmp_path, config, part):
  _one_line(_run(tmp_path / "w", config=config), part)


def test_a_truncated_line_is_named_and_nothing_is_lost(tmp_path):
  assert _run(tmp_path, "--stages=import,candidates").returncode == 0
  path = tmp_path / "candidates.jsonl"
  kept = (tmp_path / "trajectories.jsonl").read_bytes()
  path.write_bytes(path.read_bytes()[:-20])
  count = path.read_bytes().count(b"\n") + 1
  done = _run(tmp_path, "--stages=profile")
  _one_line(done, f"candidates.jsonl:{count}")
  assert (tmp_path / "trajectories.jsonl").read_bytes() == kept


def test_a_checkpoint_of_another_shape_is_one_line(tmp_path):
  model = tmp_path / "model"
  model.mkdir()
  for file in policy.MINI.iterdir():
    (model / file.name).write_bytes(file.read_bytes())
  config = json.loads((model / "config.json").read_text())
  config["hidden_size"] *= 2
  (model / "config.json").write_text(json.dumps(config))
  assert _run(tmp_path / "w", "--stages=import,candidates").returncode == 0
  done = _run(
    tmp_path / "w", "--stages=profile", f"--config.model.path={model}"
  )
  _one_line(done, "embed_tokens", "shape", "expected")


def test_a_home_stands_for_its_tilde_in_every_path(tmp_path):
  """Config, workdir and cache: the run, all below a home of its own."""
  shutil.copytree(policy.MINI, tmp_path / "model")
  template = (policy.MINI / "chat_template.jinja").read_text()
  (tmp_path / "t.jinja").write_text(
    "{% if enable_thinking %}{% endif %}" + template
  )
  row = {
    "messages": [
      {"role": "user", "content": "q"},
      {"role": "assistant", "content": "a"},
    ]
  }
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  done = _run(
      "~/w", "--stages=import,candidates", "--config.model.path=~/model",
      "--config.model.chat_template=~/t.jinja",
      '--config.model.template_kwargs={"enable_thinking": false}',
      "--config.data.path=~/rows.jsonl", "--config.data.format=auto",
      config="configs/tau.py", HOME=str(tmp_path),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "w" / "candidates.jsonl").read_text().count("\n") == 1
  resolved = json.loads((tmp_path / "w" / "config.json").read_text())["config"]
  assert resolved["model"]["path"] == str(tmp_path / "model")
  assert not (ROOT / "~").exists()


def test_importers_know_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  row = {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": "a"}]}  # fmt: skip
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  found = importers.import_path(pathlib.Path("~/rows.jsonl"), domain="tau")
  assert [len(t.messages) for t in found] == [2]


def test_a_second_run_is_refused(tmp_path):
  with open(tmp_path / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _one_line(_run(tmp_path, "--stages=import"), "in use by another run")


def test_a_full_disk_is_one_line_and_keeps_what_was_there(small_disk):
  disk = small_disk("64k")
  kept = disk / "w" / "kept"
  kept.parent.mkdir()
  kept.write_text("kept")
  done = _run(disk / "w", "--stages=import", "--config.data.trajectories=99")
  _one_line(done, "No space left on device")
  assert kept.read_text() == "kept"
  assert not (disk / "w" / "trajectories.jsonl").exists()


def test_done_stages_are_skipped(tmp_path):
  first = _run(tmp_path, "--stages=import,candidates")
  before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.jsonl")}
  again = _run(tmp_path, "--stages=import,candidates")
  assert first.returncode == again.returncode == 0
  for name in ("trajectories.jsonl", "candidates.jsonl"):
    path = tmp_path / name
    assert path.stat().st_mtime_ns == before[path]
  assert "import: done before" in again.stderr
