"""Eight CPU devices for every test; real data where it is to be had."""

import os
import pathlib
import subprocess
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import flax.linen as nn  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from pivotrl_jax.engines import policy as policy_lib  # noqa: E402
from pivotrl_jax.models import hf  # noqa: E402
from pivotrl_jax.models import qwen3  # noqa: E402

hypothesis.settings.register_profile(
  "tests", deadline=None, derandomize=True, max_examples=200
)
hypothesis.settings.load_profile("tests")

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))  # For what tests share: reads.py.


@pytest.fixture(scope="session")
def testdata() -> pathlib.Path:
  """Real trajectories and verifier cases: $PIVOTRL_TESTDATA."""
  path = pathlib.Path(
    os.environ.get("PIVOTRL_TESTDATA", ROOT.parent / "shared")
  ).expanduser()
  if not path.is_dir():
    pytest.skip(f"no test data at {path}; set PIVOTRL_TESTDATA")
  return path


@pytest.fixture
def small_disk(tmp_path):
  """`small_disk("64k")`: a folder on a file system of so many bytes."""
  disks = []

  def make(size):
    disk = tmp_path / f"disk{len(disks)}"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
      pytest.skip("cannot mount a small tmpfs here")
    disks.append(disk)
    return disk

  yield make
  for disk in disks:
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """Programs that a module compiles are kept, as in runs of `main`."""
  folder = tmp_path_factory.mktemp("programs")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
  """The mini policy's tokenizer with one random layer: it compiles fast."""
  path = tmp_path_factory.mktemp("checkpoint")
  shape = hf.read_config(policy_lib.MINI) | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
  }
  params = qwen3.init_params(qwen3.config_from_hf(shape), jax.random.key(0))
  hf.save(path, jax.device_get(nn.unbox(params)), shape, policy_lib.MINI)
  return str(path)
