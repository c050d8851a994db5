"""The script writes the very files that the package ships."""

import pathlib
import subprocess
import sys

from pivotrl_jax.engines import policy

ROOT = pathlib.Path(__file__).parent.parent.parent
# By itself: the script's flags are other programs' flags too.
_WRITE = """
import pathlib, sys, tokenizers
from launchers import build_mini_tokenizer
shipped = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
build_mini_tokenizer.write(pathlib.Path(sys.argv[2]), shipped)
"""


def test_it_writes_what_is_shipped(tmp_path):
  subprocess.run(
    [sys.executable, "-c", _WRITE, str(policy.MINI), str(tmp_path / "out")],
    check=True,
    capture_output=True,
    cwd=ROOT,
  )
  files = list((tmp_path / "out").iterdir())
  assert len(files) == 4
  for file in files:
    assert file.read_bytes() == (policy.MINI / file.name).read_bytes()
