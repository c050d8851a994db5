"""Every exchange with a server, as a trajectory that imports as data."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax.data import records


class Record:
  """Appends one OpenAI row a completion: an importer's `openai` format.

  A row holds the messages that were asked, with earlier assistant turns as
  context (`weight` 0: each was an exchange of its own), and the answer; beside
  them prompt ids, sampled ids and their log-probs. Nothing is lost in the
  text: what was sampled can be trained on as it was sampled.
  """

  def __init__(self, path: pathlib.Path):
    """Opens the file to append to.

    Raises:
      InputError: it cannot be written.
    """
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(path, "a", encoding="utf-8")
    except OSError as error:
      raise errors.InputError(
        f"--record={path}: {error.strerror}; expected a file to append to"
      ) from error

  def add(
    self,
    name: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    *,
    prompt: Sequence[int],
    ids: Sequence[int],
    log_probs: Sequence[float],
    finish: str,
    version: str,
  ) -> None:
    """One completion; flushed, so that a killed server loses none."""
    before = [
      {**m, "weight": 0} if m.get("role") == "assistant" else dict(m)
      for m in messages
    ]
    row = {
      "id": name,
      "messages": [*before, dict(answer)],
      "tools": list(tools),
      "prompt_token_ids": list(prompt),
      "token_ids": list(ids),
      "log_probs": list(log_probs),
      "finish_reason": finish,
      "weight_version": version,
    }
    self._file.write(records.encode(row) + "\n")
    self._file.flush()

  def close(self) -> None:
    self._file.close()
