"""SWE tool calls: tool category, target, then similarity of the content.

The behaviour of NeMo Gym's swe_pivot ("compat"), and the same with its
defects mended ("default"): whatever the demonstration's call carries, the
model's call must carry too; searches compare their patterns, unknown tools
all their arguments; views through an editor, a reader or the shell are one.
With both switches off only the tool counts: the paper's own SWE reward.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import json
import re
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.verifiers import arguments as args_lib
from pivotrl_jax.verifiers import similarity

DEFAULTS = {
  "reward_mode": "binary",
  "enable_target_match": True,
  "enable_argument_similarity": True,
  "similarity_threshold": 0.4,
  "similarity_full_credit": 0.8,
  "enable_diff_size_shaping": True,
  "diff_size_alpha": 0.1,
  "pattern_threshold": 0.5,
  # "default" only: "text" compares the quoted texts of an edit, "changed" the
  # lines that differ between them, however much context is quoted.
  "edit_scope": "text",
}
_CATEGORIES = {
  "edit": (
    "str_replace_editor text_editor file_editor code_editor edit_file"
    " modify_file update_file file_edit edit modify apply_patch patch_file"
    " apply_diff apply_changes write write_file save_file create_file"
  ),
  "bash": (
    "execute_bash run_bash bash_exec shell_run shell bash terminal"
    " shell_command shell_cmd run_shell_cmd exec_command exec_cmd"
  ),
  "search": (
    "grep search_text find_pattern text_search glob find_files file_glob"
    " match_files grep_files search_files find_in_files code_search"
    " list_dir ls show_dir ls_dir list_directory"
  ),
  "read": (
    "read read_file view_file cat_file view file_view inspect show_file"
    " read_file_content"
  ),
  "finish": "finish submit",
  "think": "think",
  "planning": (
    "task_tracker todo_tracker plan_tracker todo_read todo_write"
    " update_plan list_tasks update_tasks read_todos write_todos edit_plan"
    " modify_plan"
  ),
}
_BY_NAME = {
  spelling: category
  for category, names in _CATEGORIES.items()
  for name in names.split()
  for spelling in (name, name.replace("_", ""))
}
_PATH_KEYS = ("path", "file", "file_path", "filename", "file_name")
_MORE_PATH_KEYS = (*_PATH_KEYS, "filePath", "filepath", "target_file")
_OLD_KEYS = ("old_str", "old_string", "oldString")
_NEW_KEYS = ("new_str", "new_string", "newString")
_CONTENT_KEYS = ("patch", "diff", "content", "file_text", "input")
_SIZED_KEYS = ("new_str", "patch", "diff", "content", "file_text")
_PATTERN_KEYS = ("pattern", "query", "regex", "search_term", "glob")
_LAST_LINE = 10**9
_PREFIX = 2000  # Characters that the original compares.
_PLAIN = re.compile(r"[\w./\- ]+")
_PATHS = re.compile(
  r"(?:^|(?<=[\s='\"(]))((?:/[\w.\-]+)+/?|\.{1,2}/[\w.\-/]+"
  r"|[\w.\-]+/[\w.\-/]+)"
)


def verify(
  demonstration: types.Action,
  action: types.Action,
  *,
  tools: Sequence[Mapping[str, Any]] = (),
  config: Mapping[str, Any],
  setting: str,
  row: Mapping[str, Any],
  judge: Any = None,
) -> types.Verdict:
  """See the module; levels as the original counts them."""
  del tools, row, judge
  mended = setting == "default"
  if demonstration.type != "function_call":
    return _other_label(demonstration, action, mended)
  if action.type == "message" or not action.calls:
    return types.Verdict(0.0, "model_output_invalid")
  if mended and len(action.calls) > 1:
    return types.Verdict(0.0, "surplus_calls")
  want, got = demonstration.calls[0], action.calls[0]
  if mended:
    look = _as_view(want, "")
    want, got = look, _as_view(got, "view" if look is not want else "")
  kind = _kind(want.name, got.name)
  if kind is None:
    return types.Verdict(0.0, "tool_name_mismatch")
  if mended:
    e, g = (_arguments(call) for call in (want, got))
  else:
    e = _arguments_compat(want, _looked_up(kind, config))
    g = _arguments_compat(got, _looked_up(kind, config) + _sized(kind, config))
  if mended and e == {} and g is None:
    g = {}  # Nothing was to be said.
  if g is None or e is None:
    return types.Verdict(0.0, "arguments_decode_error")
  if config["enable_target_match"] and not _target(kind, e, g, mended):
    return types.Verdict(0.0, "target_mismatch")
  score = 1.0
  if config["enable_argument_similarity"]:
    score = _similarity(kind, e, g, config, mended)
  return _verdict(kind, e, g, score, config, mended)


def _verdict(kind, e, g, score, config, mended):
  full, least = (
    config["similarity_full_credit"],
    config["similarity_threshold"],
  )
  details: dict[str, Any] = {"similarity_score": score}
  reward = float(score >= full)
  if config["reward_mode"] != "binary" and least <= score < full:
    reward = 0.5 + 0.5 * (score - least) / (full - least)
  if kind == "edit" and _shaped(config):
    size = 0 if mended and e == g else len(_content(g, mended))
    penalty = config["diff_size_alpha"] * min(size / 500, 1.0)
    details["diff_size_penalty"] = penalty
    reward *= 1.0 - penalty
  reason = "none" if reward > 0 else "similarity_below_threshold"
  return types.Verdict(reward, reason, details)


def _other_label(demonstration, action, mended):
  """Labels that are no call: unusable upstream, a message scored here."""
  if not mended or demonstration.type != "message":
    return types.Verdict(0.0, "expected_action_invalid")
  said = action.type == "message" and bool(action.content.strip())
  return types.Verdict(
    float(said), "none" if said else "no_expected_chat_message"
  )


def _as_view(call, default):
  """A look at a file as the read tool's, whoever takes it; else the call.

  An editor's sub-command that is not given is taken to be `default`.
  """
  kind = _BY_NAME.get(call.name.lower())
  if kind not in ("edit", "bash"):
    return call
  values = args_lib.decode(call.arguments)
  if not isinstance(values, dict):
    return call
  if kind == "bash":
    words = _plain_words(_command(values))
    if len(words) != 2 or words[0] != "cat":
      return call
    values = {"path": words[1]}
  elif values.get("command", default) != "view" or _content(values, True):
    return call
  values = {k: v for k, v in values.items() if k != "command"}
  return types.ToolCall("view_file", json.dumps(values))


def _plain_words(command):
  """The words of a command that does nothing but run one program."""
  if len(command) > _PREFIX or not _PLAIN.fullmatch(command):
    return []
  return command.split()


def _kind(want, got):
  """The category both tools are in, "unknown" for equal names, or None."""
  left, right = (_BY_NAME.get(n.lower(), "unknown") for n in (want, got))
  if want.lower() == got.lower():
    return left
  return left if left == right != "unknown" else None


def _arguments(call):
  """The arguments' object; None where the call cannot count."""
  value = args_lib.of_call(call.arguments)
  return value if isinstance(value, dict) else None


def _arguments_compat(call, keys):
  """The object that the original goes on with; None where it fails.

  It looks keys up in whatever was decoded: a list or string without them
  passes as empty, one with them and all else makes it fail. What no level
  looks into passes whatever it is.

  Args:
    call: whose arguments.
    keys: those looked up, `_METHODS` among them where an object is needed.
  """
  value = args_lib.decode(call.arguments)
  if isinstance(value, dict):
    return value
  if value is args_lib.UNREADABLE:
    return None if args_lib.too_large(call.arguments) else {}
  if not keys:
    return {}
  if not isinstance(value, (list, str)) or _METHODS in keys:
    return None
  return None if any(key in value for key in keys) else {}


_METHODS = object()


def _looked_up(kind, config):
  """The keys that the original's levels 1 and 2 look up in arguments."""
  target, similar = (
    config["enable_target_match"],
    config["enable_argument_similarity"],
  )
  if kind in ("search", "read"):
    return _PATH_KEYS if target else ()
  keys = {"edit": (_METHODS,), "bash": ("command", "cmd")}.get(kind, ())
  return keys if target or similar else ()


def _sized(kind, config):
  """The keys that its level 4 looks up in the model's arguments."""
  return _SIZED_KEYS if kind == "edit" and _shaped(config) else ()


def _shaped(config):
  return (
    config["reward_mode"] == "continuous" and config["enable_diff_size_shaping"]
  )


def _target(kind, e, g, mended):
  if kind == "edit":
    return _edit_target(e, g, mended)
  if kind == "bash":
    return _bash_target(_command(e), _command(g), mended)
  if kind in ("search", "read"):
    needed = mended and kind == "read"
    return _same_path(e, g, 3, needed) and (not needed or _covers(e, g))
  return True


def _edit_target(e, g, mended):
  left, right = str(e.get("command", "")), str(g.get("command", ""))
  if left and right and left != right:
    return False
  if not _same_path(e, g, 2, mended):
    return False
  # Mended, a view is no edit: `_as_view`.
  return left != "view" or right != "view" or _covers_compat(e, g)


def _bash_target(want, got, mended):
  if mended and want and not got:
    return False
  verbs = [c.split()[0].rsplit("/", 1)[-1] for c in (want, got) if c.split()]
  if len(verbs) == 2 and verbs[0] != verbs[1]:
    return False
  left, right = _paths(want), _paths(got)
  if left and right and not left & right:
    return False
  return not (want and got) or _ratio(got, want, mended) >= 0.3


def _same_path(e, g, parts, needed):
  """Whether the paths agree; with `needed` the label's may not be left out."""
  left, right = _path(e, _PATH_KEYS), _path(g, _PATH_KEYS)
  if needed and not left:
    # A tool with other words for it.
    left, right = _path(e, _MORE_PATH_KEYS), _path(g, _MORE_PATH_KEYS)
  if not left or not right:
    return not (needed and left)
  return _suffix(left, parts) == _suffix(right, parts)


def _path(values, keys):
  return next((str(values[k]).strip() for k in keys if k in values), "")


def _suffix(path, parts):
  return path.strip("/").split("/")[-parts:]


def _command(values):
  return next(
    (str(values[k]).strip() for k in ("command", "cmd") if k in values), ""
  )


def _paths(command):
  found = (m.group(1).rstrip("/") for m in _PATHS.finditer(command))
  return {
    "/".join(_suffix(p, 3))
    for p in found
    if len(p) >= 3 and not p.startswith("--")
  } - {""}


def _covers(e, g):
  """Whether a view shows at least 0.8 of the lines the label shows."""
  want, got = _range(e), _range(g)
  if want == got:
    return True
  if want is None or got is None:
    # All lines cover any range; a range of what was seen whole may not.
    return got is None
  shared = min(want[1], got[1]) - max(want[0], got[0]) + 1
  return shared >= 0.8 * (want[1] - want[0] + 1)


def _covers_compat(e, g):
  try:
    want, got = _range_compat(e), _range_compat(g)
    if want is None or got is None:
      return True
    shared = max(0, min(want[1], got[1]) - max(want[0], got[0]))
    return shared / max(1, want[1] - want[0]) >= 0.8
  except OverflowError:  # Infinity as a line: there the original fails.
    return False


def _range_compat(values):
  """(start, end) as the original reads a view's range, or None."""
  span = values.get("view_range")
  if isinstance(span, str):
    span = args_lib.decode(span)
  if not isinstance(span, list) or len(span) != 2:
    return None
  try:
    return int(span[0]), int(span[1])
  except (TypeError, ValueError):
    return None


def _range(values):
  """(start, end) of a view, -1 being the last line; None without one."""
  span = values.get("view_range")
  if isinstance(span, str):
    span = args_lib.decode(span)
  if span is None and ("start" in values or "end" in values):
    span = [values.get("start", 1), values.get("end", -1)]
  try:
    start, end = (int(x) for x in span)
  except (TypeError, ValueError, OverflowError):
    return None
  return start, _LAST_LINE if end == -1 else end


def _similarity(kind, e, g, config, mended):
  if kind == "edit":
    return _edit_similarity(e, g, config, mended)
  if kind == "bash":
    want, got = _command(e), _command(g)
    return _ratio(got, want, mended) if want and got else 1.0
  if not mended or kind in ("read", "finish", "think", "planning"):
    return 1.0
  if kind == "search":
    return float(_same_pattern(e, g, config["pattern_threshold"]))
  reason = args_lib.mismatch(e, g, tolerance=1e-6, words=0.1, setting="default")
  return float(reason is None)


def _edit_similarity(e, g, config, mended):
  olds, news = (_OLD_KEYS, _NEW_KEYS) if mended else (["old_str"], ["new_str"])
  left = [_first(e, olds), _first(e, news)]
  right = [_first(g, olds), _first(g, news)]
  if any(left) and any(right):
    if mended and config["edit_scope"] == "changed":
      left, right = _changed(*left), _changed(*right)
    return min(
      _ratio(b, a, mended) if a and b else float(a == b)
      for a, b in zip(left, right, strict=True)
    )
  want, got = _content(e, mended), _content(g, mended)
  if mended and not want and not got:
    return float(
        args_lib.mismatch(
            e, g, tolerance=1e-6, words=0.1, setting="default"
        ) is None
    )  # fmt: skip
  if want and got:
    return _ratio(got, want, mended)
  return float(want == got)


def _changed(old, new):
  """The lines an edit changes, without the context it quotes."""
  left = [line.strip() for line in old.strip().splitlines()]
  right = [line.strip() for line in new.strip().splitlines()]
  while left and right and left[0] == right[0]:
    left, right = left[1:], right[1:]
  while left and right and left[-1] == right[-1]:
    left, right = left[:-1], right[:-1]
  return ["\n".join(left), "\n".join(right)]


def _content(values, mended):
  if "new_str" in values:
    return f"{values.get('old_str', '')}\n{values['new_str']}"
  if mended:
    return _first(values, (*_NEW_KEYS, *_CONTENT_KEYS))
  return _first(values, ("patch", "diff", "content", "file_text"))


def _first(values, keys):
  return next((str(values[k]) for k in keys if k in values), "")


def _same_pattern(e, g, threshold):
  """Dice of the words (identifiers) in two patterns."""
  left, right = (
    Counter(re.findall(r"\w+", _first(v, _PATTERN_KEYS))) for v in (e, g)
  )
  total = sum(left.values()) + sum(right.values())
  if not _first(e, _PATTERN_KEYS):
    return True  # A listing: the label has no pattern.
  if not total:
    return _first(e, _PATTERN_KEYS) == _first(g, _PATTERN_KEYS)
  return 2 * sum((left & right).values()) >= threshold * total


def _ratio(got, want, mended):
  """How alike two texts are; the original looks at their beginnings only."""
  begin = similarity.ratio(got[:_PREFIX], want[:_PREFIX], autojunk=not mended)
  if not mended or max(len(got), len(want)) <= _PREFIX:
    return begin
  return min(begin, similarity.ratio(got, want))
