"""Calls that agents write into the text of a reply, one a reply."""

import re

from pivotrl_jax import errors


def only(
  pattern: re.Pattern[str], content: str, place: str
) -> tuple[re.Match[str] | None, str]:
  """The one call in `content`, None if there is none, and the text around it.

  Raises:
    errors.InputError: there are several; the agents run one a reply.
  """
  found = list(pattern.finditer(content))
  if len(found) > 1:
    raise errors.InputError(
      f"{place}: {len(found)} calls in one reply; expected one"
    )
  if not found:
    return None, content
  around = (content[: found[0].start()], content[found[0].end() :])
  return found[0], "\n".join(filter(None, (part.strip() for part in around)))
