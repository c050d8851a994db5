"""What importers know: the one rule of what may be left out of a record.

A value is content unless it is null, false, or empty. A key with content is
carried into the record, or it is in a table below, or the row is refused with
the key's name. Columns of a row that are in no table are named once a file.
"""

from collections.abc import Collection
from typing import Any

from pivotrl_jax import errors

# Facts about a message, a part or a call that a model neither reads nor
# writes: names and ids, clocks and costs, and a provider's copy of its reply.
METADATA = frozenset((
    "_id", "agent", "annotations", "cache_control", "caller",
    "citations", "cost", "created", "created_at", "date", "duration",
    "encrypted_content", "end_time", "error", "errors", "example",
    "extra_content", "finish_reason", "id", "index", "is_error", "latency", "logprobs", "message_id", "metadata", "model",
    "model_name", "msg_id", "name", "object", "parent_id", "provider",
    "provider_specific_fields", "requestor", "response_metadata", "seed",
    "sender", "sent_at", "signature", "start_time", "status", "step",
    "stop_reason", "stop_sequence", "success", "time", "timestamp",
    "token_count", "token_counts", "tokens", "turn", "turn_idx", "turn_id",
    "usage", "usage_metadata", "uuid",
))  # fmt: skip
# Marks of what to train on; `chat.untrained` reads them.
MARKS = ("loss", "train", "trainable", "loss_weight", "weight", "loss_mask")
# Columns of a row that describe it without belonging to its chat.
COLUMNS = METADATA | frozenset((
    "agent_name", "benchmark", "category", "category_id", "config",
    "data_source", "dataset", "dataset_name", "difficulty", "domain",
    "exit_status", "format", "git_branch", "hash", "idx", "lang", "language",
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
    if is_content(found) and not any(key in table for table in known):
      what = "image part" if "image" in key else "not a key that is known here"
      raise errors.InputError(f"{place}.{key}: {found!r:.60}; {what}")
