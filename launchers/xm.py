"""What `xmanager launch` takes; the flags are those of launch.py.

  xmanager launch launchers/xm.py -- --sweep=launchers/sweeps/smoke.py --root=DIR

Needs XManager (`pip install xmanager==0.8.5.post1`, Python 3.11) beside the
requirements; nothing else does.
"""

import pathlib
import sys

from absl import flags
from xmanager import xm  # noqa: F401  Its flags.

# Runs from a checkout as it is. XManager drops the first place of the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

from launchers import launch

flags.FLAGS.set_default("executor", "xm_local")
main = launch.main
