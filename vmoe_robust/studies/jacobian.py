"""`config.study.name = 'jacobian'`: is it experts or gates that amplify?

A sparse layer is y = sum_i p_i f_i, so its Jacobian has an expert term, sum_i
p_i J_i, and a gate term, sum_i f_i (grad p_i)^T. V-MoE keeps K of E gates and
does not renormalise them, so P = sum_i p_i is not 1. With the mean expert
f_bar = sum_i p_i f_i / P, the gate term is split in f_bar (grad P)^T, which
only scales the layer's output, and the rest, which moves weight between the
chosen experts: with K = 1 there is no rest. All three add up to J.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_robust.config import UserError
from vmoe_robust.evaluate.job import Job
from vmoe_robust.models import Model
from vmoe_robust.models.intervene import Tokens
from vmoe_robust.models.moe import Grouping, Moe
from vmoe_robust.models.routers.routing import Routing
from vmoe_robust.report.figures import Bar, BarPlot
from vmoe_robust.report.findings import Findings
from vmoe_robust.report.statistics import mean
from vmoe_robust.report.table import table
from vmoe_robust.robustness.measure import classes
from vmoe_robust.studies import conditions as under

TERMS = ('expert', 'gate', 'sum_of_gates')
TOTAL = 'total'
MARGIN = 'margin'
# The terms may miss J by this share of the sum of their norms.
_TOLERANCE = 1e-5


def run(job: Job) -> Findings:
  """Norms of the terms, of each sparse layer and of the logit margin.

  Of a layer: the spectral norm of the Jacobian of its output by its input, for
  each token, mean over tokens and then over images; of routed experts alone,
  where there are shared ones too. Of the logit margin, which
  is the largest logit less the second: the L2 norm of its gradient by the
  image. A path from the image to the margin belongs to the gates of the last
  layer whose gates it passes, and to the experts if it passes none.

  With B sparse layers it takes 7 + 2 x B forward passes an image (a gradient
  counts as two), and 20 + 12 x `config.study.jacobian.iterations` of each
  sparse layer alone.

  The model is computed in float32, whatever it was trained in.

  A dense model has no layer to split: of its margin there is J alone, which
  counts as the experts' term, beside that of sparse models.

  Raises:
    UserError: the router is not top_k, or does not route each token alone.
  """
  blocks: tuple[str, ...] = ()
  if job.config.model.experts:
    blocks = under.require_experts(job, 'jacobian')
    under.require_router(job, 'jacobian', ('top_k',))
    if job.config.model.router.unit != 'token':
      raise UserError(
        "config.study.name='jacobian' looks at each token alone, and with "
        f'config.model.router.unit={job.config.model.router.unit!r} the other '
        "tokens of an image decide its gates; use a model of unit='token'"
      )
  model = under.in_float32(job)
  iterations = job.config.study.jacobian.iterations

  def program(params, images, batch):
    logits, of_margin = margin_terms(model, params, images, batch['mask'])
    found = {'prediction_after': classes(logits)}
    found |= {f'{MARGIN}/{n}': x for n, x in _of_margin(of_margin).items()}
    for block, tokens in inputs(model, params, images, batch['mask']).items():
      apply = partial(layer, model, params, block, batch['mask'])
      norms = layer_norms(apply, tokens, iterations)
      found[f'{block}/error'] = norms.pop('error').max(-1)  # of tokens
      found |= {f'{block}/{n}': x.mean(-1) for n, x in norms.items()}
    return {name: x[None] for name, x in found.items()}

  shown = [under.Condition(under.CLEAN)]
  columns, skipped = under.measured(job, 'jacobian', shown, program)
  (row,) = under.rows(columns, shown)
  row |= {place: _place(columns, place) for place in (*blocks, MARGIN)}
  row[MARGIN]['of_layer'] = {
    block: {t: mean(columns[f'{MARGIN}/{t}/{block}']) for t in TERMS[1:]}
    for block in blocks
  }
  return Findings(
    columns=columns,
    skipped=sorted(skipped),
    rows=[row],
    summary={'blocks': list(blocks), 'iterations': iterations},
    figures=[_figure(row, (*blocks, MARGIN))],
    warnings=_warnings(row, (*blocks, MARGIN)),
  )


def part(
  term: str, block: str, tokens: Tokens, routing: Routing
) -> tuple[Tokens, Routing]:
  """An intervention that leaves values alone, and of J only one term."""
  del block
  stop, gates = jax.lax.stop_gradient, routing.gates
  if term == TOTAL:
    return tokens, routing
  if term == 'expert':
    return tokens, routing._replace(gates=stop(gates))
  total = gates.sum(-1, keepdims=True)
  scaled = share(stop(gates)) * (total - stop(total))
  gates = gates - scaled if term == 'gate' else stop(gates) + scaled
  return stop(tokens), routing._replace(gates=gates)


def share(gates: Float[Array, '... choices']) -> Float[Array, '... choices']:
  """Gates divided by their sum; zeros where they are zero."""
  total = gates.sum(-1, keepdims=True)
  return gates / jnp.where(total > 0, total, 1)


def layer(
  model: Model,
  params: dict,
  block: str,
  mask: Array,
  term: str,
  tokens: Tokens,
  plain: bool = False,
) -> Tokens:
  """A sparse layer alone, of which one term of the Jacobian is left.

  With `plain` it is differentiable forwards, and without it backwards.
  """
  module = model.module
  moe = Moe(module.config, tokens.dtype, module.mesh)
  grouping = Grouping(
    mask=mask,
    index=jnp.arange(len(mask)),
    images=1,
    dropless=True,
    train=False,
    plain=plain,
    intervene=partial(part, term),
  )
  own = {'params': params['Encoder'][block]['Moe']}
  return moe.apply(own, tokens, grouping, block)[0]


def inputs(
  model: Model, params: dict, images: Array, mask: Array
) -> dict[str, Tokens]:
  """What each sparse layer sees of the images."""
  seen = {}

  def look(block, tokens, routing):
    seen[block] = tokens
    return tokens, routing

  model.apply(params, images, mask=mask, intervene=look)
  return seen


def layer_norms(
  apply: Callable[..., Tokens], tokens: Tokens, iterations: int
) -> dict[str, Float[Array, 'batch tokens']]:
  """Spectral norms of the terms, for each token, by power iteration.

  Tokens do not see each other here, so that all are iterated at once. Also
  'error': how far the terms are from J along a random direction, over the sum
  of the lengths of all.

  Args:
    apply: `(term, tokens, plain)` to the layer's output, see `layer`.
    tokens: what the layer sees.
    iterations: of the power method; too few make norms too small.
  """
  start = jax.random.normal(jax.random.key(0), tokens.shape, tokens.dtype)
  norms, moved = {}, {}
  for term in (*TERMS, TOTAL):
    forward = partial(_along, partial(apply, term, plain=True), tokens)
    _, backward = jax.vjp(partial(apply, term), tokens)

    def step(_, v, forward=forward, backward=backward):
      (v,) = backward(forward(v))
      return _unit(v)

    moved[term] = forward(start)
    v = jax.lax.fori_loop(0, iterations, step, _unit(start))
    norms[term] = jnp.linalg.norm(forward(v), axis=-1)
  return norms | {'error': _error(moved, -1)}


def margin_terms(
  model: Model, params: dict, images: Array, mask: Array
) -> tuple[Array, dict[str, Array]]:
  """Logits, and the gradient of the logit margin by the image, in terms.

  Returns:
    The logits, and gradients of the images' shape: 'total', 'expert', and
    'gate/BLOCK' and 'sum_of_gates/BLOCK' for each sparse block. Each is found
    without the others.
  """

  def logits_of(x, taps):
    def tap(block, tokens, routing):
      gates = jax.lax.stop_gradient(routing.gates) + taps[block]
      return tokens, routing._replace(gates=gates)

    intervene = None if taps is None else tap
    return model.apply(params, x, mask=mask, intervene=intervene)

  logits, aux = logits_of(images, None)
  first, second = jax.lax.top_k(logits, 2)[1].T
  hot = partial(jax.nn.one_hot, num_classes=logits.shape[1])
  signs = hot(first) - hot(second)
  margin = lambda x, taps: (logits_of(x, taps)[0] * signs).sum()
  found = {TOTAL: jax.grad(margin)(images, None)}
  zeros = {b: jnp.zeros_like(r.routing.gates) for b, r in aux.records.items()}
  found['expert'], pull = jax.grad(margin, (0, 1))(images, zeros)

  def gates_of(x):
    records = logits_of(x, None)[1].records
    return {block: record.routing.gates for block, record in records.items()}

  gates, backward = jax.vjp(gates_of, images)
  for block, weight in pull.items():
    # What a change of P alone does: every gate grows by its share.
    alike = (weight * share(gates[block])).sum(-1, keepdims=True)
    alike = jnp.broadcast_to(alike, weight.shape)
    for term, cotangent in (('gate', weight - alike), ('sum_of_gates', alike)):
      (found[f'{term}/{block}'],) = backward(zeros | {block: cotangent})
  return logits, found


def _of_margin(terms: dict[str, Array]) -> dict[str, Float[Array, 'batch']]:
  """Norms of the terms, those of all layers together, and the error."""
  flat = {name: x.reshape(len(x), -1) for name, x in terms.items()}
  whole = {name: flat[name] for name in (TOTAL, 'expert')}
  for term in TERMS[1:]:
    parts = [x for n, x in flat.items() if n.startswith(f'{term}/')]
    whole[term] = sum(parts, jnp.zeros_like(flat[TOTAL]))
  norms = {n: jnp.linalg.norm(x, axis=-1) for n, x in (flat | whole).items()}
  return norms | {'error': _error(whole, -1)}


def _along(f, x, v):
  return jax.jvp(f, (x,), (v,))[1]


def _error(terms: dict[str, Array], axis: int) -> Array:
  miss = jnp.linalg.norm(sum(terms[t] for t in TERMS) - terms[TOTAL], axis=axis)
  sizes = sum(jnp.linalg.norm(x, axis=axis) for x in terms.values())
  return miss / jnp.where(sizes > 0, sizes, 1)


def _unit(v: Array) -> Array:
  size = jnp.linalg.norm(v, axis=-1, keepdims=True)
  return v / jnp.where(size > 0, size, 1)


def _place(columns, place) -> dict:
  """Means of norms and of their shares (0 of none); 1 is the worst error."""
  norms = {term: columns[f'{place}/{term}'] for term in (*TERMS, TOTAL)}
  total = np.where(norms[TOTAL] > 0, norms[TOTAL], np.inf)
  shares = {term: mean(norms[term] / total) for term in TERMS}
  error = float(np.nan_to_num(columns[f'{place}/error'], nan=1).max())
  found = {term: mean(norm) for term, norm in norms.items()}
  return found | {'share': shares, 'error': error}


def _warnings(row, places) -> list[str]:
  return [
    f'the terms of {place} miss its Jacobian by {row[place]["error"]:.1e} of '
    'their size, so that they are not to be trusted: gradients of the model '
    'are too large, or not finite'
    for place in places
    if not row[place]['error'] <= _TOLERANCE
  ]


def _figure(row, places) -> BarPlot:
  bars = []
  for place in places:
    name = 'logit margin' if place == MARGIN else place
    for term in TERMS:
      found = row[place]['share'][term]
      shown = f'{name}: {term.replace("_", " ")}'
      bars.append(Bar.of(shown, found, name))
  title = f'Terms of the Jacobian, {row["accuracy"]["n"]:,} clean examples'
  x_label = 'norm of the term / norm of J'
  return BarPlot('jacobian', title, x_label, bars, unit='')


def render(results: dict) -> str:
  """Norms and their shares of J, a line a place and term."""
  (row,) = results['rows']
  lines = []
  for place in (*results['summary']['blocks'], MARGIN):
    found = row[place]
    for term in (*TERMS, TOTAL):
      share_of = _number(found['share'][term]) if term in TERMS else ''
      name = term.replace('_', ' ')
      lines.append([place, name, _number(found[term]), share_of])
  return table(['Jacobian of', 'term', 'norm', 'over norm of J'], lines)


def _number(estimate) -> str:
  if estimate['value'] is None:
    return '-'
  ends = estimate['interval'] or ()
  shown = f' ({" to ".join(f"{end:.4g}" for end in ends)})' if ends else ''
  return f'{estimate["value"]:.4g}{shown}'
