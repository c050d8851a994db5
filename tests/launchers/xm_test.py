"""XManager: what it is handed, and stand-ins through its local executor.

Where XManager is not installed only what does not need it is tested.
"""

import http.server
import json
import pathlib
import subprocess
import sys
import threading

from absl import flags
import pytest

from launchers.executors import xmanager
from launchers.runs import root as root_lib
from pivotrl_jax import errors

ROOT = pathlib.Path(__file__).parent.parent.parent
JOB = root_lib.Job(
  name="a", arm="a", seed=0, config="c.py", overrides={}, needs=("shared/x",),
  command=(sys.executable, "-m", "m", "--workdir=/r/a"), stages=("train",),
)  # fmt: skip
R = pathlib.Path("/r")


def test_a_container_runs_the_attempt_with_its_own_python():
  spec = xmanager.specification(
    R, JOB, executor="kubernetes", image="i:1",
    requirements=["h100=8", "ram=64GiB"],
  )  # fmt: skip
  assert spec["requirements"] == {"h100": 8, "ram": 64 * 2**30}
  assert spec["args"] == [
    [
      "launchers/runs/attempt.py", "--workdir=/r/a", "--shared=/r/shared/x", "--",
      "python", "-m", "m", "--workdir=/r/a",
    ]
  ]  # fmt: skip
  with pytest.raises(errors.InputError, match="'h100'; expected NAME=AMOUNT"):
    xmanager.specification(R, JOB, executor="vertex", requirements=["h100"])


def test_hosts_are_told_the_coordinator_their_count_and_index():
  spec = xmanager.specification(
    R, JOB, executor="kubernetes", image="i:1", hosts=2
  )
  assert [args[-3:] for args in spec["args"]] == [
    ["--coordinator=COORDINATOR", "--processes=2", f"--process={i}"]
    for i in range(2)
  ]
  assert [args[args.index("--") - 1] for args in spec["args"]] == [
    "--process=0", "--process=1"
  ]  # fmt: skip


def test_without_xmanager_one_line(tmp_path):
  if xmanager_is_here():
    pytest.skip("XManager is installed")
  done = _launch(tmp_path / "r", {"a": {}}, "--executor=xm_local")
  assert done.returncode == 1
  assert "no XManager here" in done.stderr
  assert "Traceback" not in done.stderr


def xmanager_is_here():
  try:
    import xmanager  # noqa: F401
  except ImportError:
    return False
  return True


def _launch(root, runs, *args):
  return subprocess.run(
      [
          sys.executable, "-m", "tests.launchers.driver", f"--root={root}",
          f"--runs={json.dumps(runs)}", *args,
      ],
      cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
  )  # fmt: skip


def test_local_jobs(tmp_path):
  pytest.importorskip("xmanager")
  runs = {"a": {"seed": 1}, "b": {"fails": 2}, "c": {"fails": 7}}
  done = _launch(
    tmp_path, runs, "--executor=xm_local", "--tries=2", "--at_once=2"
  )
  assert done.returncode == 1, done.stderr
  rows = {row.job.name: row.status for row in root_lib.read(tmp_path)}
  assert {name: rows[name].state for name in runs} == {
    "a": "done", "b": "failed", "c": "failed"
  }  # fmt: skip
  assert [rows[name].attempts for name in runs] == [1, 1, 2]
  # The shared import was taken over.
  assert (tmp_path / "a" / "trajectories.jsonl").stat().st_nlink == 4


@pytest.fixture
def cluster():
  """A Kubernetes that accepts everything, and keeps what it was sent."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self._answer({"items": []})

    def do_POST(self):
      size = int(self.headers["Content-Length"])
      body = json.loads(self.rfile.read(size))
      self.server.sent.append((self.path, body))
      self._answer(body)

    def _answer(self, body):
      self.send_response(200)
      self.send_header("Content-Type", "application/json")
      self.end_headers()
      self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.sent = []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_kubernetes_job_is_the_specification(cluster):
  pytest.importorskip("xmanager")
  from kubernetes import client as kubernetes
  from xmanager import xm_local
  from xmanager.cloud import kubernetes as xm_kubernetes
  from xmanager.xm_local import executables

  flags.FLAGS.mark_as_parsed()  # XManager's own.
  spec = xmanager.specification(
    R, JOB, executor="kubernetes", image="i:1", requirements=["cpu=2"], hosts=2
  )
  image = executables.GoogleContainerRegistryImage(
    name="i", image_path="i:1", args=[], env_vars={}
  )
  group = xmanager.group(spec, image, "h:1")
  configuration = kubernetes.Configuration(host=cluster.address)
  xm_kubernetes.Client(kubernetes.ApiClient(configuration)).launch(
    lambda name: f"7_1_{name}", group.jobs.values()
  )
  assert xm_local.Kubernetes is type(group.jobs["host0"].executor)
  jobs = [body for path, body in cluster.sent if path.endswith("/jobs")]
  assert [job["metadata"]["name"] for job in jobs] == ["7-1-host0", "7-1-host1"]
  [container] = jobs[1]["spec"]["template"]["spec"]["containers"]
  assert container["image"] == "i:1"
  assert container["args"] == [
    arg.replace("COORDINATOR", "h:1") for arg in spec["args"][1]
  ]
  assert container["resources"]["limits"] == {"cpu": "2"}
