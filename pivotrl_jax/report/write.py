"""The report stage: a workdir -> report.md, report.html and figures."""

import os
import pathlib
import shutil
from typing import Any

from absl import logging

from pivotrl_jax.report import page
from pivotrl_jax.report import plots
from pivotrl_jax.report import tables


def run(config: Any, workdir: pathlib.Path) -> None:
  """All artifacts -> report/; the bytes depend on them alone."""
  found = tables.read(workdir)
  figures = plots.figures(found)
  temporary = workdir / ".report.partial"
  shutil.rmtree(temporary, ignore_errors=True)
  (temporary / "figures").mkdir(parents=True)
  for name, data in figures.items():
    (temporary / "figures" / f"{name}.png").write_bytes(data)
  (temporary / "report.md").write_text(_markdown(found, figures))
  html = page.page(found, figures, most_pivots=config.report.pivots)
  (temporary / "report.html").write_text(html, encoding="utf-8")
  shutil.rmtree(workdir / "report", ignore_errors=True)
  os.rename(temporary, workdir / "report")
  headline = page.headline(found)
  if headline:
    logging.info(
      "report: success %(before)s -> %(after)s on %(tasks)s held-out tasks,"
      " %(difference)s, paired 95 %% interval %(interval)s",
      headline,
    )


def _markdown(found, figures):
  parts = [f"# PivotRL on {found.config['domain']}\n"]
  headline = page.headline(found)
  if headline:
    parts.append(
      "**{before} -> {after}** success on {tasks} held-out tasks;"
      " {difference}, paired 95 % interval {interval}.\n".format(**headline)
    )
  else:
    parts.append("No evaluation of a base and a trained policy here.\n")
  for title, table in tables.all_tables(found):
    parts.append(
      f"## {title}\n\n{tables.MEANINGS[title]}\n\n{tables.markdown(table)}"
    )
  for name in figures:
    title, meaning = plots.describe(name)
    parts.append(
      f"### {title}\n\n{meaning}\n\n![{title}](figures/{name}.png)\n"
    )
  return "\n".join(parts)
