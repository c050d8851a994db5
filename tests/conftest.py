"""Eight CPU devices for every test; real data where it is to be had."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
  "tests", deadline=None, derandomize=True, max_examples=200
)
hypothesis.settings.load_profile("tests")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def testdata() -> pathlib.Path:
  """Real trajectories and verifier cases: $PIVOTRL_TESTDATA."""
  path = pathlib.Path(
    os.environ.get("PIVOTRL_TESTDATA", ROOT.parent / "shared")
  ).expanduser()
  if not path.is_dir():
    pytest.skip(f"no test data at {path}; set PIVOTRL_TESTDATA")
  return path
