"""The mini terminal world: a shell, files, and a goal; replies in JSON."""

from pivotrl_jax.envs.terminal.environment import DOMAIN, ROW, TOOLS
from pivotrl_jax.envs.terminal.environment import reset, step, success
from pivotrl_jax.envs.terminal.expert import act, act_poorly
from pivotrl_jax.envs.terminal.tasks import make_task

__all__ = [
    "DOMAIN", "ROW", "TOOLS", "act", "act_poorly", "make_task", "reset",
    "step", "success",
]  # fmt: skip
