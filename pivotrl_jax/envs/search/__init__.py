"""The mini search world: an encyclopedia to look things up in, hop by hop."""

from pivotrl_jax.envs.search.environment import DOMAIN, ROW, TOOLS
from pivotrl_jax.envs.search.environment import reset, step, success
from pivotrl_jax.envs.search.expert import act, act_poorly
from pivotrl_jax.envs.search.tasks import make_task

__all__ = [
    "DOMAIN", "ROW", "TOOLS", "act", "act_poorly", "make_task", "reset",
    "step", "success",
]  # fmt: skip
