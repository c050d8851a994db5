"""The processes of a run over several hosts, or the only one.

All of them run the same stages on the same values; what one of them alone
knows (a file, a signal, what its devices sampled) is told to all by `first`
and `gathered`. Values go through the key-value store of JAX's coordination
service, hence compile nothing.

A process that ends takes the others with it: each holds a connection to the
first one, over which a line and a status go, or which breaks. So nobody waits
for the dead, whatever it is at: compiling, summing over devices, saving.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from flax import serialization
import jax
from jax._src import distributed
from jaxlib import _jax
import numpy as np

from pivotrl_jax import coordinator
from pivotrl_jax import errors

_HELLO = 10  # Seconds for a process to say which it is.
_RETRY, _ATTEMPTS = 0.2, 150  # Seconds between attempts to meet, or to listen.
_MOMENT = 3.0  # Seconds in which the end of another process is known.
_STARTS = 5  # Of the coordination service, at most.
_FOREVER = 10**9  # Milliseconds, for what ends by itself or with the process.
_GONE = 1  # Status of a run one process of which was killed.
# A host that is gone without a word: so many seconds, then so many probes.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class _State:
  """What `start` found; one process until then."""

  count = 1
  index = 0
  client: Any = None
  gathers = 0
  connections: dict[int, socket.socket] = {}
  ended = False
  lock = threading.Lock()


_STATE = _State()


def start(
  coordinator: str, count: int, index: int, *, timeout: float = 300
) -> None:
  """Joins the processes of a run; before anything touches a device.

  Also for one process: then sums over its devices are taken in the order of
  any number of processes.

  Args:
    coordinator: `host:port` of the first process.
    count: of processes.
    index: which one this is, from 0.
    timeout: seconds for all to come.

  Raises:
    InputError: they do not come, or the first cannot listen there.
  """
  # JAX's own notice of preemption would take SIGTERM from `interrupt`.
  jax.config.update("jax_enable_preemption_service", False)
  _STATE.count, _STATE.index = count, index
  host, _, port = coordinator.rpartition(":")
  host, end = host.strip("[]"), time.monotonic() + timeout
  meet = _gather_others if index == 0 else _find_first
  service = meet(host, int(port), end)
  if service is None:
    raise errors.InputError(
      f"--coordinator={coordinator}: not all of --processes={count} came there"
      f" within {timeout:g} s; expected each to be started"
    )
  for other, connection in _STATE.connections.items():
    _listen(connection, other)
  state = distributed.global_state
  state.process_id, state.num_processes = index, count
  state.coordinator_address = f"{host}:{service}"
  state.client = _STATE.client = _jax.get_distributed_runtime_client(
    state.coordinator_address, index, use_compression=True
  )
  state.client.connect()
  if jax.device_count() != count * jax.local_device_count():
    raise errors.InputError(
      f"--process={index}: {jax.local_device_count()} of"
      f" {jax.device_count()} devices; expected as many on each of"
      f" --processes={count}"
    )


def stop() -> None:
  """The run ended well: waits for the others to say so too."""
  if _STATE.client is None:
    return
  gathered(None)
  with _STATE.lock:
    _STATE.ended = True  # From here on it is no matter who goes first.
  gathered(None)
  _STATE.client.shutdown()


def count() -> int:
  """How many processes there are."""
  return _STATE.count


def index() -> int:
  """Which one this is."""
  return _STATE.index


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return _STATE.index == 0


def gathered(value: Any) -> list[Any]:
  """The values of all processes, by their indices; all call it alike.

  Args:
    value: of lists, dicts with text as keys (which come sorted), arrays, text,
      numbers and None.
  """
  if _STATE.count == 1:
    return [value]
  client, number = _STATE.client, _STATE.gathers
  _STATE.gathers += 1
  client.key_value_set_bytes(
    f"pivotrl/{number}/{_STATE.index}", serialization.msgpack_serialize(value)
  )
  found = [
    serialization.msgpack_restore(
      client.blocking_key_value_get_bytes(f"pivotrl/{number}/{i}", _FOREVER)
    )
    for i in range(_STATE.count)
  ]
  if number:  # All are here, so all have read what was before.
    client.key_value_delete(f"pivotrl/{number - 1}/{_STATE.index}")
  return found


def barrier() -> None:
  """Waits for all processes to come here."""
  gathered(None)


def first(function: Callable[[], Any]) -> Any:
  """What `function` returns in the first process, which alone calls it."""
  return gathered(function() if is_first() else None)[0]


def agreed(function: Callable[[], Any]) -> Any:
  """What `function` returns here; where one process fails, all do.

  Raises:
    EngineError: an engine failed, here or elsewhere.
  """
  found = failure = None
  try:
    found = function()
  except errors.EngineError as error:
    failure = str(error)
  for line in filter(None, gathered(failure)):
    raise errors.EngineError(line)
  return found


def share(size: int) -> slice:
  """Which of `size` things are this process's."""
  return slice(*(size * (_STATE.index + i) // _STATE.count for i in (0, 1)))


def placed(tree: Any, shardings: Any) -> Any:
  """Arrays that every process has alike, as arrays over all devices.

  Each process gives its own devices their part.

  Args:
    tree: arrays, of NumPy or of JAX.
    shardings: one for all, or a tree of them like `tree`.
  """

  def place(x, sharding):
    if _spans_hosts(x) or sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: place(x, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def of_all(tree: Any) -> Any:
  """Arrays that every process has alike, as arrays of all processes.

  What lies over all devices stays as it is; in one process all does.
  """
  if _STATE.count == 1:
    return tree
  everywhere = jax.sharding.NamedSharding(
    jax.sharding.Mesh(np.array(jax.devices()), ("devices",)),
    jax.sharding.PartitionSpec(),
  )
  return jax.tree.map(
    lambda x: x if _spans_hosts(x) else placed(x, everywhere), tree
  )


def _spans_hosts(x):
  return isinstance(x, jax.Array) and not x.is_fully_addressable


def copies(tree: Any, devices: Sequence[jax.Device]) -> list[Any]:
  """A whole copy of arrays on each of this process's devices given.

  All processes call it alike.
  """

  def on(device, x):
    if x.is_fully_addressable:
      return x if x.devices() == {device} else jax.device_put(x, device)
    (own,) = (s.data for s in x.addressable_shards if s.device == device)
    return own

  whole = jax.tree.map(_whole, tree)
  return [
    jax.tree.map(functools.partial(on, device), whole) for device in devices
  ]


def _whole(x):
  """An array as it is, or over several processes, the whole on each device."""
  return _gather(x.sharding.mesh)(x) if _spans_hosts(x) else x


@functools.cache
def _gather(mesh):
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(lambda x: x, out_shardings=everywhere)


def fetched(array: Any) -> np.ndarray:
  """The whole of an array on this host; all processes call it alike."""
  return np.asarray(_whole(array))


def tell(status: int, line: str) -> None:
  """Tells the others that this process is about to end, and how.

  It does not come back where one of them was first: then that is said here,
  and nothing else.
  """
  with _STATE.lock:  # Who ends this process holds it to the last.
    if not _STATE.ended:
      _STATE.ended = True
      _pass_on(status, f"process {_STATE.index}: {line}")


def hear() -> None:
  """Waits a moment for word that another process has ended, which ends this
  one with that line.
  """
  if _STATE.connections:
    time.sleep(_MOMENT)


def _gather_others(host, port, end):
  """In the first process: connections of all others, who are told the port of
  the coordination service; None where they do not come in time.
  """
  del host
  with _listening(port) as server:
    while len(_STATE.connections) < _STATE.count - 1:
      server.settimeout(max(0.0, end - time.monotonic()))
      try:
        connection, _ = server.accept()
      except (TimeoutError, BlockingIOError):
        return None
      connection.settimeout(_HELLO)
      said = _read(connection)
      if said and said[0] == _STATE.count:
        _STATE.connections[said[1]] = connection
      else:
        connection.close()  # Of another run, or none of ours.
  port = _serve()
  for connection in _STATE.connections.values():
    connection.sendall(_row(port))
  return port


def _find_first(host, port, end):
  """In another process: the same of its connection to the first."""
  while (left := end - time.monotonic()) > 0:
    try:
      connection = socket.create_connection((host, port), timeout=left)
      connection.sendall(_row(_STATE.count, _STATE.index))
      told = _read(connection)
    except OSError:
      told = None
    if told:
      _STATE.connections[0] = connection
      return told[0]
    time.sleep(_RETRY)  # It is not there yet, or was started anew.
  return None


def _listening(port):
  """A server socket; the port of a run that has just ended may be free soon."""
  if _STATE.count == 1:
    return contextlib.nullcontext()
  for _ in range(_ATTEMPTS):
    try:
      return socket.create_server(("", port), backlog=_STATE.count)
    except OSError as error:
      failure = error
      time.sleep(_RETRY)
  raise errors.InputError(
    f"--coordinator: cannot listen at port {port}: {failure.strerror}; expected"
    " a free port of this host"
  )


def _serve():
  """Starts the coordination service, which outlives this process a little.

  JAX's client ends its process with a stack trace once the service is gone:
  whoever waits for this process is to hear of it from `_listen` first.

  Returns:
    Its port.

  Raises:
    InputError: it does not start.
  """
  for _ in range(_STARTS):  # Another may take a free port before it does.
    with socket.create_server(("", 0)) as free:
      port = free.getsockname()[1]
    _STATE.service = subprocess.Popen(
        [
            sys.executable, "-m", "pivotrl_jax.coordinator", str(port),
            str(_STATE.count),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    said = _STATE.service.stdout.readline().decode().strip()
    if said == coordinator.READY:
      return port
  raise errors.InputError(
    f"--coordinator: no coordination service at port {port}:"
    f" {said or 'it ended'}; expected a host that can start one"
  )


def _listen(connection, index):
  """Ends this process when the other one does, in a thread of its own."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

  def wait():
    gone = _GONE, f"process {index} of {_STATE.count} is gone: killed, or its"
    status, line = _read(connection) or (
      gone[0], gone[1] + " host; what is complete stays, the same command goes"
      " on",
    )  # fmt: skip
    with _STATE.lock:
      if _STATE.ended:
        return
      _STATE.ended = True
      _pass_on(status, line)
      # Not through a logger, whose lock the main thread may hold.
      os.write(2, f"error: {line}\n".encode())
      os._exit(status)

  threading.Thread(target=wait, daemon=True).start()


def _pass_on(status, line):
  for connection in _STATE.connections.values():
    try:
      connection.sendall(_row(status, line))
    except OSError:
      pass  # It has ended too.


def _row(*values):
  return json.dumps(values).encode() + b"\n"


def _read(connection):
  """The values of a row; None where the connection ends before."""
  data = b""
  try:
    while not data.endswith(b"\n"):
      more = connection.recv(4096)
      if not more:
        return None
      data += more
    return json.loads(data)
  except (OSError, ValueError):
    return None
