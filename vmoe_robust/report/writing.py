"""Writes what was found: records, figures, `results.json`, and a page of it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from absl import logging

from vmoe_robust.files import replacing, write_json
from vmoe_robust.report import page
from vmoe_robust.report.findings import Figure, Findings
from vmoe_robust.report.records import read_records, write_records
from vmoe_robust.report.results import (
  FIGURES,
  FORMAT,
  RECORDS,
  RESULTS,
  VERSION,
  environment,
)


def assemble(
  findings: Findings,
  *,
  asked: Mapping[str, object],
  weights: Mapping[str, object],
  data: Mapping[str, object],
  skipped: Sequence[str] = (),
) -> dict:
  """What `results.json` says, in the form of `results.schema.json`.

  Args:
    findings: what was found.
    asked: the part of that name.
    weights: the part of that name.
    data: 'name', 'split' and 'fingerprint'.
    skipped: names of the examples that could not be read.
  """
  columns = findings.columns
  return {
    'format': FORMAT,
    'format_version': VERSION,
    'asked': dict(asked),
    'weights': dict(weights),
    'data': {
      **data,
      'examples': len(np.unique(columns['index'])),
      'skipped': {'count': len(skipped), 'names': list(skipped)},
    },
    **environment(),
    'summary': dict(findings.summary),
    'rows': [dict(row) for row in findings.rows],
    'warnings': list(findings.warnings),
    'speed': dict(findings.speed),
    'files': {
      'records': {
        'name': RECORDS,
        'rows': len(columns['index']),
        'columns': list(columns),
      },
      'figures': [entry(figure) for figure in findings.figures],
    },
  }


def write(
  folder: str | os.PathLike,
  results: dict,
  findings: Findings,
  arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
  """Writes a folder; a figure or page that cannot be made is a warning.

  `results.json` comes last, and an older one goes first, so that it never
  stands beside files of another run.

  Args:
    folder: which is there.
    results: of `assemble`; the picture of such a figure becomes None in it.
    findings: of which they are.
    arrays: written as NAME.npy.

  Raises:
    OSError: the disk is full, say.
    RuntimeError: the records do not come back as the numbers were found from.
  """
  folder = Path(folder)
  (folder / RESULTS).unlink(missing_ok=True)
  for name, array in arrays.items():
    with replacing(folder / f'{name}.npy') as draft, draft.open('wb') as file:
      np.save(file, array)
  _write_records(folder / RECORDS, findings.columns)
  for about, figure in zip(
    results['files']['figures'], findings.figures, strict=True
  ):
    draw(folder, about, figure)
  write_json(folder / RESULTS, results)
  _report(folder)


def _report(folder: Path):
  """Writes the page of a run; one that cannot be made is a warning."""
  try:
    page.write([folder / RESULTS], folder / page.REPORT)
  except Exception as error:  # no picture ends a run
    logging.warning('%s was not written: %s', page.REPORT, error)


def _write_records(path: Path, columns: dict[str, np.ndarray]):
  """Writes the records, which must come back as the numbers were found from.

  Raises:
    RuntimeError: they do not.
  """
  write_records(path, columns)
  for name, column in read_records(path).items():
    is_float = column.dtype.kind == 'f'
    if not np.array_equal(column, columns[name], equal_nan=is_float):
      raise RuntimeError(f'{path}: column {name!r} came back changed')


def entry(figure: Figure) -> dict:
  """What a file says of a figure: its name, title and files."""
  return {
    'name': figure.name,
    'title': figure.title,
    'data': f'{FIGURES}/{figure.data_name}',
    'picture': f'{FIGURES}/{figure.name}.png',
  }


def draw(folder: Path, about: dict, figure: Figure) -> None:
  """Writes the data and the picture of a figure.

  Args:
    folder: of the run.
    about: its `entry`; the picture becomes None if it cannot be made.
    figure: which one.

  Raises:
    OSError: the disk is full, say.
  """
  (folder / FIGURES).mkdir(exist_ok=True)
  figure.write_data(folder / about['data'])
  try:
    figure.draw(folder / about['picture'])
  except Exception as error:  # whatever a drawing library may raise
    logging.warning('%s was not drawn: %s', about['picture'], error)
    about['picture'] = None
