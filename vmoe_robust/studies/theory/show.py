"""Of the theory's problems: rows of results, pictures and the table."""

import numpy as np
from ml_collections import ConfigDict

from vmoe_robust.report.figures import Line, LinePlot
from vmoe_robust.report.findings import Columns
from vmoe_robust.report.statistics import mean
from vmoe_robust.report.table import table
from vmoe_robust.studies.theory import cells, misrouting

CAVEATS = (
  'The law sqrt(nd/p) bounds the global Lipschitz constant of one function',
  'It says nothing without label noise: here the labels are noise alone',
  'A routed function jumps between cells; its slope is that within a cell',
)
_PROBLEMS = {
  'linear': 'linear, random points',
  'orthogonal': 'linear, orthogonal points',
  'mlp': 'ReLU MLPs of equal active parameters',
}


def in_cells(columns: Columns, settings: ConfigDict) -> list[dict]:
  """The largest slope of each problem and E, and how many times less it is."""
  rows = []
  for problem in _PROBLEMS:
    dense = _by_draw(columns, f'{problem}, E 1', 'gradient').max(1)
    for experts in (1, *settings.experts):
      name = f'{problem}, E {experts}'
      largest = _by_draw(columns, name, 'gradient').max(1)
      rows.append(
        {
          'condition': name,
          'problem': problem,
          'experts': experts,
          'largest_slope': mean(largest),
          'dense_over_largest': mean(dense / largest),
          'smallest_of_draws': float((dense / largest).min()),
          'largest_of_draws': float((dense / largest).max()),
          'sqrt_experts': float(np.sqrt(experts)),
        }
      )
  return rows


def learned(columns: Columns, settings: ConfigDict) -> list[dict]:
  """The terms of the Jacobian for each disagreement of the teacher."""
  rows = []
  for disagreement in settings.disagreements:
    name = f'learned, disagreement {disagreement:g}'
    row: dict = {'condition': name, 'problem': 'learned'}
    row['disagreement'] = float(disagreement)
    for number in ('expert_term', 'gate_term', 'gradient', 'squared_error'):
      row[number] = mean(_by_draw(columns, name, number).mean(1))
    rows.append(row)
  return rows


def in_blocks(columns: Columns, settings: ConfigDict) -> list[dict]:
  """Squared errors, dense and misrouted, beside what the formulas say."""
  rows = []
  for experts in settings.experts:
    dense, right, wrong = misrouting.risks(experts, settings.blocks_noise)
    shares = [f'misrouted {share:g}' for share in settings.misrouted]
    for kind in ('dense', *shares, 'routed by energy'):
      name = f'blocks, E {experts}, {kind}'
      here = columns['condition'] == name
      share = columns['label'][here] != columns['prediction_after'][here]
      asked = float(share.mean())
      if kind in shares:
        asked = float(settings.misrouted[shares.index(kind)])
      expected = (1 - asked) * right + asked * wrong
      if kind == 'routed by energy':  # its errors are not at random
        expected = None
      rows.append(
        {
          'condition': name,
          'problem': 'blocks',
          'kind': 'misrouted' if kind in shares else kind,
          'experts': experts,
          'misrouted': asked,
          'squared_error': mean(
            _by_draw(columns, name, 'squared_error').mean(1)
          ),
          'expected': dense if kind == 'dense' else expected,
        }
      )
  return rows


def _by_draw(columns: Columns, condition: str, number: str) -> np.ndarray:
  """A number of a condition's points, a row a draw."""
  here = columns['condition'] == condition
  draws = len(np.unique(columns['draw'][here]))
  return columns[number][here].reshape(draws, -1)


def figures(rows: list[dict], settings: ConfigDict) -> list[LinePlot]:
  """One of each question."""
  return [
    _ratios(rows, settings),
    _slopes(rows, settings),
    _terms(rows, settings),
    _misrouted(rows, settings),
  ]


def _curve(label, x, y, panel='') -> Line:
  """A formula: dashed, without an interval."""
  return Line(label, x, y, y, y, panel=panel, dashed=True)


def _title(text: str, settings: ConfigDict) -> str:
  return f'{text}, {settings.draws} draws'


def _ratios(rows, settings) -> LinePlot:
  lines = []
  for problem, label in _PROBLEMS.items():
    here = [r for r in rows if r['problem'] == problem]
    x = [r['experts'] for r in here]
    lines.append(Line.of(label, x, [r['dense_over_largest'] for r in here]))
  lines.append(_curve('square root of E', x, [x**0.5 for x in x]))
  return LinePlot(
    'theory_ratios',
    _title(f'Fixed routing of {settings.points} random labels', settings),
    'experts E, each of n / E points',
    "dense slope / largest expert's",
    lines,
    unit='',
    note=f'Linear: d = {settings.dimension}, the smallest weights that fit.\n'
    f'MLPs: d = {settings.mlp_dimension}, width {settings.mlp_width}, slope at '
    'the points.\n' + CAVEATS[2] + '.',
  )


def _slopes(rows, settings) -> LinePlot:
  n, d, lines = settings.points, settings.dimension, []
  for problem in ('linear', 'orthogonal'):
    here = [r for r in rows if r['problem'] == problem]
    x = [r['experts'] for r in here]
    found = [r['largest_slope'] for r in here]
    lines.append(Line.of(f'largest expert: {_PROBLEMS[problem]}', x, found))
  law = [cells.law(n, d, experts * d) for experts in x]
  lines.append(_curve('sqrt(n d / p), p = E d', x, law))
  if n < d:
    expected = [cells.expected_norm(n // experts, d) for experts in x]
    lines.append(_curve('sqrt(m / (1 - m / d)), m = n / E', x, expected))
  return LinePlot(
    'theory_law',
    _title(f'Linear experts that fit {n} random labels', settings),
    'experts E (1: dense)',
    'Lipschitz constant within a cell',
    lines,
    unit='',
    note='.\n'.join(CAVEATS) + '.',
  )


def _terms(rows, settings) -> LinePlot:
  here = [r for r in rows if r['problem'] == 'learned']
  x = [r['disagreement'] for r in here]
  names = {
    'gradient': 'whole gradient',
    'expert_term': 'expert term',
    'gate_term': 'gate term',
  }
  lines = [
    Line.of(label, x, [r[name] for r in here]) for name, label in names.items()
  ]
  return LinePlot(
    'theory_terms',
    _title('Routing and 4 linear experts, learned together', settings),
    "disagreement of the teacher's experts (sine of an angle)",
    'norm in L2, mean over points',
    lines,
    unit='',
    note='Every linear function of the teacher has norm 1.\n'
    'The two terms are vectors: their sum is the gradient, their norms are not '
    'additive.',
  )


def _misrouted(rows, settings) -> LinePlot:
  lines = []
  for experts in settings.experts:
    here = [
      r for r in rows if r['problem'] == 'blocks' and r['experts'] == experts
    ]
    by = lambda kind, here=here: [r for r in here if r['kind'] == kind]
    panel = f'E = {experts}'
    x = [r['misrouted'] for r in by('misrouted')]
    routed = [r['squared_error'] for r in by('misrouted')]
    dense = [by('dense')[0]['squared_error']] * len(x)
    energy = by('routed by energy')[0]
    lines += [
      Line.of('experts, misrouted at random', x, routed, panel),
      Line.of('dense, as many parameters', x, dense, panel),
      Line.of(
        'experts, routed by energy',
        [energy['misrouted']],
        [energy['squared_error']],
        panel,
      ),
      _curve(
        'experts, formula', x, [r['expected'] for r in by('misrouted')], panel
      ),
      _curve('dense, formula', x, [by('dense')[0]['expected']] * len(x), panel),
    ]
  return LinePlot(
    'theory_misrouting',
    _title(f'Inputs in E blocks, noise {settings.blocks_noise:g}', settings),
    'share of wrong decisions',
    'squared error',
    lines,
    unit='',
    note='Targets have variance 1. Right of the crossing the dense predictor '
    'is the better one.\nThe formulas are of endless training data.',
  )


def render(results: dict) -> str:
  """A table a problem, and the caveats."""
  rows, parts = results['rows'], []
  here = [r for r in rows if r['problem'] in _PROBLEMS]
  lines = [
    [
      r['condition'],
      *(_shown(r[n]) for n in ('largest_slope', 'dense_over_largest')),
      f'{r["smallest_of_draws"]:.2f} to {r["largest_of_draws"]:.2f}',
      f'{r["sqrt_experts"]:.2f}',
    ]
    for r in here
  ]
  heads = ['cells', 'largest slope', 'dense / it', 'over draws', 'sqrt(E)']
  parts.append(table(heads, lines))
  names = ('expert_term', 'gate_term', 'gradient', 'squared_error')
  lines = [
    [r['condition'], *(_shown(r[n]) for n in names)]
    for r in rows
    if r['problem'] == 'learned'
  ]
  heads = ['learned routing', *(n.replace('_', ' ') for n in names)]
  parts.append(table(heads, lines))
  lines = [
    [
      r['condition'],
      f'{r["misrouted"]:.3f}',
      _shown(r['squared_error']),
      '-' if r['expected'] is None else f'{r["expected"]:.3f}',
    ]
    for r in rows
    if r['problem'] == 'blocks'
  ]
  parts.append(table(['blocks', 'misrouted', 'error', 'formula'], lines))
  at = results['summary']['misrouted_at_the_reversal']
  shown = ', '.join(f'{share:.3f} ({name})' for name, share in at.items())
  parts.append(f'routing is no better than dense from {shown} on')
  parts.append('\n'.join(f'{line}.' for line in CAVEATS))
  return '\n\n'.join(parts)


def _shown(estimate: dict) -> str:
  shown = f'{estimate["value"]:.3f}'
  if estimate['interval']:
    low, high = estimate['interval']
    shown += f' ({low:.3f} to {high:.3f})'
  return shown
