"""What importers know: the one rule of what may be left out of a record.

A value is content unless it is null, false, or empty. A key with content is
carried into the record, or it is in a table below, or the row is refused with
the key's name. Columns of a row that are in no table are named once a file.
"""

from collections.abc import Collection
from typing import Any

from pivotrl_jax import errors

# Facts about a message, a part or a call that a model neither reads nor
# writes: names and ids, clocks and costs. None of them is a list.
_FACTS = frozenset((
    "_id", "agent", "caller", "cost", "created", "created_at", "date",
    "duration", "encrypted_content", "end_time", "error", "example",
    "finish_reason",
    "id", "index", "is_error", "latency", "message_id", "model", "model_name",
    "msg_id", "name", "object", "parent_id", "provider", "requestor", "seed",
    "sender", "sent_at", "signature", "start_time", "status", "step",
    "stop_reason", "stop_sequence", "success", "time", "timestamp",
    "token_count", "turn", "turn_id", "turn_idx", "uuid",
))  # fmt: skip
# Those, and what a provider says of its reply, which may be a list.
METADATA = _FACTS | frozenset((
    "annotations", "cache_control", "citations", "extra_content", "logprobs",
    "metadata", "provider_specific_fields", "response_metadata",
    "token_counts", "tokens", "usage", "usage_metadata",
))  # fmt: skip
# Marks of what to train on; `chat.untrained` reads them.
MARKS = ("loss", "train", "trainable", "loss_weight", "weight", "loss_mask")
# Columns of a row that describe it without belonging to its chat.
COLUMNS = METADATA | frozenset((
    "agent_name", "benchmark", "category", "category_id", "config",
    "data_source", "dataset", "dataset_name", "difficulty", "domain",
    "errors", "exit_status", "format", "git_branch", "hash", "idx", "lang", "language",
    "license", "messages_count", "model_id", "num_messages", "num_turns",
    "parallel_tool_calls", "project", "repo", "row_idx", "run_id", "source",
    "split", "subset", "tag", "tags", "task", "task_name", "temperature",
    "termination_reason", "token_length", "topic", "total_tokens", "trial",
    "trial_name", "type", "url", "version",
))  # fmt: skip


def is_content(value: Any) -> bool:
  """Whether a value says anything: not null, false, or empty."""
  return value is not None and value is not False and value not in ("", [], {})


def refuse_others(
  value: dict[str, Any], place: str, *known: Collection[str]
) -> None:
  """InputError that names the first key with content in no table.

  Args:
    value: a message, a part, a call.
    place: where it is inside its row.
    known: keys that the caller carries or leaves out knowingly.
  """
  for key, found in value.items():
    if not is_content(found):
      continue
    if not any(key in table for table in known) or _is_no_fact(key, found):
      what = "image part" if "image" in key else "not a key that is known here"
      raise errors.InputError(f"{place}.{key}: {found!r:.60}; {what}")


def _is_no_fact(key, found):
  """Whether a fact says more than facts do: an error may have a text."""
  is_told = key == "error" and not isinstance(found, bool)
  return key in _FACTS and (isinstance(found, list) or is_told)
