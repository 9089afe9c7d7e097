"""`config.mode = 'study'`: asks one question of a saved checkpoint."""

import os

from ml_collections import ConfigDict

from vmoe_robust.config import choose
from vmoe_robust.evaluate import job
from vmoe_robust.studies import STUDIES


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Runs the study `config.study.name`, writes and prints what it found.

  Raises:
    UserError: the checkpoint, the data or the configuration do not fit.
  """
  study = STUDIES[choose('config.study.name', config.study.name, STUDIES)]
  job.judge(config, workdir, study.run, study.render)
