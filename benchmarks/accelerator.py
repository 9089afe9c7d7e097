"""What a GPU or TPU does with the project: right first, then fast.

  python benchmarks/accelerator.py [--long] [--parts=correct,layer,mfu,attack]

- `correct`: logits, routing, gradients and attacks on the accelerator against
  those of this machine's CPU, in float32 and in the products' fast mode.
- `layer`: the MoE layer of V-MoE-B/16 in bfloat16, in every way that the
  backend can run it, against a dense MLP of equal active FLOPs.
- `mfu`: FLOPs of the model a second over the chip's peak, of training steps and
  of PGD steps, of ViT-B/16 and V-MoE-B/16 in bfloat16.
- `attack`: AutoAttack beside the original in PyTorch: the same weights, images
  and card. It wants `--checkpoint`, a trained ViT of ours such as
  configs/cifar10_vit.py leaves, `torch`, and the package `autoattack`
  (https://github.com/fra31/auto-attack).

Times are wall time, the median over a few turns; compiling is left out.
`layer` took 144 seconds on an H200, most of it in compilers that try kernels
out. `--long` takes larger batches, more turns and more images. Runs on CPUs
too, with small models, to try the command itself. Tables for people, then one
line of JSON for each part.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import subjects
from absl import app, flags

from vmoe_robust import config as config_lib
from vmoe_robust import mesh as mesh_lib
from vmoe_robust import presets, robust_accuracy
from vmoe_robust.attacks import Budget, ensemble
from vmoe_robust.cost import hardware
from vmoe_robust.models import build, flops, grouped, unbox
from vmoe_robust.models.routers import ROUTERS
from vmoe_robust.models.vit import sincos
from vmoe_robust.robustness import sweep
from vmoe_robust.robustness.images import InMemory
from vmoe_robust.robustness.measure import Arrays
from vmoe_robust.robustness.programs import Programs
from vmoe_robust.robustness.resume import Unfinished

_PARTS = flags.DEFINE_list('parts', ['correct', 'layer', 'mfu'], 'Which parts.')
_LONG = flags.DEFINE_bool('long', False, 'More of everything.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A trained ViT of ours.')
_EPS = flags.DEFINE_float('eps', 1.0, 'Of the part `attack`, in 1/255.')
_FOUND = flags.DEFINE_string(
  'found', None, 'Where a CPU writes the numbers that `correct` compares with.'
)


def _on_cpu() -> bool:
  return jax.default_backend() == 'cpu'


# --- right -------------------------------------------------------------------


def drawn(shapes, seed: int = 0):
  """Weights that are the same on every backend, and of a trained model's size.

  JAX's own draws differ between backends in their last bits.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(np.float32)
    name = jax.tree_util.keystr(path)
    if 'scale' in name:
      return 1 + 0.1 * x
    inputs = leaf.shape[-2] if len(leaf.shape) > 1 else 400
    return x / np.sqrt(inputs)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def small(router: str, dtype: str = 'float32'):
  """A V-MoE with two sparse blocks on 16 x 16 pixels, and its weights."""
  config = config_lib.default()
  config.data.image_size = 16
  config.model.update(
    patch=4, hidden=128, layers=4, heads=4, mlp=256, channels=3
  )
  config.model.update(
    num_classes=10, experts=8, moe_blocks=(1, 3), compute_dtype=dtype
  )
  config.model.router.update(
    name=router, selected=2, group_images=4, capacity_factor=1.5
  )
  if router == 'expert_choice':
    config.model.router.group_images = 1
  model = build(config.model, (16, 16, 3), mesh_lib.create((1, 1, 1)))
  shapes = unbox(jax.eval_shape(model.init, jax.random.key(0)))
  return model, jax.tree.map(jnp.asarray, drawn(shapes))


def numbers() -> dict[str, np.ndarray]:
  """What is compared between backends, by name."""
  rng = np.random.default_rng(1)
  images = rng.random((32, 16, 16, 3), np.float32)
  labels = rng.integers(0, 10, 32).astype(np.int32)
  found = {}

  def value(params, x, model, experts):
    logits, aux = model.apply(params, x, experts=experts)
    chosen = {name: r.routing.experts for name, r in aux.records.items()}
    picked = jnp.take_along_axis(logits, labels[:, None], 1)
    return picked.mean() + 0.01 * aux.loss, (logits, chosen)

  ready = {}
  for precision in ('highest', 'default'):
    for router in sorted(ROUTERS) if precision == 'highest' else ['top_k']:
      model, params = small(router)
      for experts in ('dropless', 'capacity'):
        run = partial(value, model=model, experts=experts)
        with jax.default_matmul_precision(precision):
          run = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
          run = run.lower(params, images)
        ready[f'{precision}/{router}/{experts}'] = run, params
  with futures.ThreadPoolExecutor(4) as threads:  # they compile side by side
    compiled = threads.map(lambda pair: pair[0].compile(), ready.values())
    for name, run in zip(ready, compiled, strict=True):
      (_, (logits, chosen)), (d_params, d_images) = run(ready[name][1], images)
      flat = lambda tree: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(tree)]
      )
      found[f'{name}/logits'] = logits
      found[f'{name}/routing'] = flat(chosen)
      found[f'{name}/image gradient'] = d_images
      found[f'{name}/weight gradient'] = flat(d_params)
  found |= attacked()
  return {name: np.asarray(x) for name, x in found.items()}


def attacked() -> dict[str, np.ndarray]:
  """Which images each attack leaves, of a network that separates them."""
  rng = np.random.default_rng(2)
  first = rng.normal(size=(192, 64)).astype(np.float32) / 14
  second = rng.normal(size=(64, 10)).astype(np.float32)

  def logits(weights, x):
    hidden = jnp.tanh((2 * x.reshape(len(x), -1) - 1) @ weights[0])
    return hidden @ weights[1]

  images = rng.random((128, 8, 8, 3), np.float32)
  weights = jnp.asarray(first), jnp.asarray(second)
  labels = np.asarray(logits(weights, images)).argmax(-1)
  found = {}
  every = ('pgd', 'apgd_t', 'apgd_ce', 'fab_t', 'square')
  asked = [('linf', 0.02, every[:2])]
  if _LONG.value:
    asked = [('linf', 0.02, every), ('l2', 0.2, every), ('l1', 1.0, every[:-1])]
  for norm, eps, attacks in asked:
    for attack in attacks:
      result = robust_accuracy(
        (logits, weights),
        images,
        labels,
        attack=attack,
        norm=norm,
        eps=eps,
        iterations=20,
        queries=300,
        progress=False,
      )
      found[f'attack/{norm}/{attack}'] = result.robust
  return found


def correct() -> dict:
  """The accelerator against the CPU; relative errors and shares."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'cpu.npz')
    other = subprocess.Popen(
      [sys.executable, __file__, f'--found={path}', f'--long={_LONG.value}'],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    here = numbers()
    if other.wait():
      raise RuntimeError('the run on the CPU failed')
    there = dict(np.load(path))
  rows = {}
  for name, mine in here.items():
    theirs = there[name]
    if mine.dtype.kind == 'f':
      error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
      rows[name] = float(error)
    else:
      rows[name] = float((mine == theirs).mean())
  print(f'{"":<36}{"error":>12}')
  for name, error in rows.items():
    alike = here[name].dtype.kind != 'f'
    shown = f'{error:>11.1%} alike' if alike else f'{error:>12.1e}'
    if name.startswith('attack/'):
      shares = f' ({here[name].mean():.3f} and {there[name].mean():.3f} stand)'
      shown += shares
    print(f'{name:<46}{shown}')
  return rows


# --- fast --------------------------------------------------------------------


def seconds(run: Callable, rounds: int, times: int = 1) -> float:
  """The median wall time of a call, of `times` that are not waited for."""
  jax.block_until_ready(run())
  found = []
  for _ in range(rounds):
    begin = time.perf_counter()
    for _ in range(times):
      out = run()
    jax.block_until_ready(out)
    found.append((time.perf_counter() - begin) / times)
  return statistics.median(found)


def layer() -> dict:
  """Each way to run the layer's experts, in times of the dense MLP."""
  cpu, result = _on_cpu(), {}
  dim, mlp, experts = (64, 128, 8) if cpu else (768, 3072, 32)
  images, tokens = (8, 16) if cpu else (256 if _LONG.value else 128, 196)
  backend = jax.default_backend()
  known = dict(grouped.PRODUCTS)
  products = {'rounds': None, 'XLA ragged_dot': jax.lax.ragged_dot}
  if backend in known:
    products[known[backend].__name__] = known[backend]
  if importlib.util.find_spec('tokamax'):
    import tokamax  # it has kernels for Hopper GPUs and TPUs

    products['tokamax'] = tokamax.ragged_dot
  draw = partial(jax.random.normal, shape=(images, tokens, dim))
  x, cotangent = (
    draw(jax.random.key(key)).astype(jnp.bfloat16) for key in (2, 3)
  )
  sparse = partial(
    subjects.sparse, dim, mlp, experts, 2, dtype=jnp.bfloat16, tokens=tokens
  )
  ways = {'dense': (partial(subjects.dense, dim, mlp * 2), None)}
  ways['capacity'] = partial(sparse, dropless=False), None
  for name, product in products.items():
    ways[f'dropless, {name}'] = partial(sparse, dropless=True), product
  print(f'{"":<28}{"fwd":>10}{"fwd+bwd":>10}{"grad-x":>10}   in dense MLPs')
  for name, (make, product) in ways.items():
    grouped.PRODUCTS.pop(backend, None)
    if product is not None:
      grouped.PRODUCTS[backend] = product
    try:
      apply, params = make()
      params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
      ready = subjects.layer_programs(apply, params, x, cotangent)
      took = {p: seconds(f, 5, 5) for p, f in ready.items()}
    except Exception as error:  # a kernel may refuse this chip
      print(f'{name:<28} {type(error).__name__}: {str(error)[:200]}')
      result[name] = None
      continue
    result[name] = took
    first = result['dense']
    line = ''.join(f'{took[p] / first[p]:>10.2f}' for p in took)
    line += '   ms ' + ' '.join(f'{1e3 * s:.2f}' for s in took.values())
    print(f'{name:<28}{line}', flush=True)
  grouped.PRODUCTS.clear()
  grouped.PRODUCTS.update(known)
  return result


def _model(size: str, sparse: bool, batch: int) -> ml_collections.ConfigDict:
  config = config_lib.default()
  config.data.image_size = 32 if _on_cpu() else 224
  if _on_cpu():
    config.model.update(patch=4, hidden=64, layers=2, heads=2, mlp=128)
    more = dict(experts=4, moe_blocks=(1,))
  else:
    config.model.update(presets.model_size(size), compute_dtype='bfloat16')
    more = presets.SPARSE
  config.model.update(num_classes=1000, channels=3)
  if sparse:
    config.model.update(more)
  config.train.batch_size = batch
  config.attack.update(steps=10)
  return config


def mfu() -> dict:
  """Shares of the chip's peak; of a CPU the FLOPs a second alone."""
  device = jax.devices()[0]
  peak = hardware.peak_flops(device.device_kind)
  batches = (16,) if _on_cpu() else (256,) if not _LONG.value else (256, 512)
  result, asked = {}, {}
  for batch in batches:
    for name, sparse in (('vit_b16', False), ('moe_b16', True)):
      asked[name, batch] = _model('B/16', sparse, batch)
  with futures.ThreadPoolExecutor(4) as threads:  # they compile side by side
    ready = {
      key: threads.submit(subjects.model_programs, config)
      for key, config in asked.items()
    }
    ready = {key: found.result() for key, found in ready.items()}
    first = {
      (key, program): threads.submit(run)
      for key, found in ready.items()
      for program, run in found.items()
    }
  failed = {key: found.exception() for key, found in first.items()}
  print(f'{"model":<10}{"batch":>6}{"program":>8}{"img/s":>10}{"TFLOP/s":>9}')
  for (name, batch), config in asked.items():
    forward = flops.forward(config.model, config.data.image_size)
    for program, run in ready[name, batch].items():
      error = failed[(name, batch), program]
      if error is not None:  # out of memory, or a kernel refuses this chip
        print(f'{name:<10}{batch:>6}{program:>8}  {str(error)[:200]}')
        continue
      took = seconds(run, 5 if not _LONG.value else 15)
      passes = 3 if program == 'train' else 2 * config.attack.steps
      rate = passes * forward * batch / took
      row = {'images_per_second': batch / took, 'flops_per_second': rate}
      share = ''
      if peak:
        row['mfu'] = rate / peak
        share = f'  MFU {row["mfu"]:.1%}'
      result[f'{name} {batch} {program}'] = row
      print(
        f'{name:<10}{batch:>6}{program:>8}{batch / took:>10.0f}'
        f'{rate / 1e12:>9.1f}{share}',
        flush=True,
      )
  return result


# --- beside the original -----------------------------------------------------


def torch_model(config, size, params):
  """A dense ViT of ours in PyTorch; images are NCHW, in [0, 1]."""
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  flat = {
    '/'.join(key.key for key in path): torch.tensor(np.asarray(x)).to(device)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }
  mean, std = (
    torch.tensor(np.broadcast_to(np.float32(v), config.channels).copy()).to(
      device
    )
    for v in (config.mean, config.std)
  )
  functional = torch.nn.functional

  def linear(x, name):
    kernel, bias = flat[f'{name}/kernel'], flat[f'{name}/bias']
    bias = bias.reshape(-1)
    return functional.linear(x, kernel.reshape(-1, bias.numel()).T, bias)

  def norm(x, name):
    scale, bias = flat[f'{name}/scale'], flat[f'{name}/bias']
    return functional.layer_norm(x, scale.shape, scale, bias, 1e-6)

  def attention(x, name):
    parts = [
      linear(x, f'{name}/{part}').unflatten(-1, (config.heads, -1))
      for part in ('query', 'key', 'value')
    ]
    y = functional.scaled_dot_product_attention(
      *(part.transpose(1, 2) for part in parts)
    )
    return linear(y.transpose(1, 2).flatten(-2), f'{name}/out')

  if config.positions == 'sincos':
    grid = (size // config.patch,) * 2
    positions = torch.tensor(sincos(grid, config.hidden)).to(device)
  else:
    positions = flat['Encoder/posembed_input/pos_embedding']

  class Vit(torch.nn.Module):
    def forward(self, x):
      x = (x - mean[:, None, None]) / std[:, None, None]
      kernel = flat['embedding/kernel'].permute(3, 2, 0, 1)
      x = functional.conv2d(
        x, kernel, flat['embedding/bias'], stride=config.patch
      )
      x = x.flatten(2).transpose(1, 2)
      if config.head == 'token':
        x = torch.cat([flat['cls'].expand(len(x), -1, -1), x], 1)
      x = x + positions
      for i in range(config.layers):
        block = f'Encoder/encoderblock_{i}'
        y = norm(x, f'{block}/LayerNorm_0')
        x = x + attention(y, f'{block}/SelfAttention')
        y = norm(x, f'{block}/LayerNorm_1')
        y = functional.gelu(
          linear(y, f'{block}/Mlp/Dense_0'), approximate='tanh'
        )
        x = x + linear(y, f'{block}/Mlp/Dense_1')
      x = norm(x, 'Encoder/encoder_norm')
      x = x[:, 0] if config.head == 'token' else x.mean(1)
      return linear(x, 'head')

  return Vit().eval().to(device), device


def attack() -> dict:
  """AutoAttack by both, on the images of the checkpoint's test split."""
  import torch
  from autoattack import AutoAttack

  import vmoe_robust
  from vmoe_robust.data import open_source
  from vmoe_robust.data.rows import examples

  if _CHECKPOINT.value is None:
    raise app.UsageError('--parts=attack wants --checkpoint')
  count = 1000 if _LONG.value else 500
  count = 40 if _on_cpu() else count
  loaded = vmoe_robust.load(_CHECKPOINT.value)
  config = loaded.config
  source = open_source(config.data, config.data.eval_split)
  pixels, labels = examples(source, config.data, count)
  images, count = pixels / np.float32(255), len(pixels)
  # Float32 products in the fast mode that JAX's default has on such a card.
  torch.set_float32_matmul_precision('high')
  model, device = torch_model(
    config.model, config.data.image_size, loaded.params
  )
  x = torch.tensor(images.transpose(0, 3, 1, 2).copy()).to(device)
  y = torch.tensor(labels, dtype=torch.long).to(device)
  with torch.no_grad():
    apart = np.abs(model(x).cpu().numpy() - loaded(pixels)).max()
  eps, result = _EPS.value / 255, {'logits differ by': float(apart)}
  print(f'logits differ by {apart:.1e} at most')

  target = loaded.target(images.shape[1:])
  programs = Programs(
    target,
    ensemble('autoattack', 'linf', target.classes, Budget()),
    norm='linf',
    seed=0,
    batch_size=count,
  )

  def ours():
    kept = InMemory(images.copy())  # x_adv are written into it
    begin = time.perf_counter()
    found = sweep.run(
      programs,
      Arrays(images, labels),
      (eps,),
      unfinished=Unfinished(None, {}),
      keeper=lambda _: kept,
    )
    took = time.perf_counter() - begin
    (fall,) = found.falls.values()
    print({k: round(v, 1) for k, v in fall.seconds.items()})
    columns = found.columns
    right = (columns['prediction_after'] == columns['label']).mean()
    return float(right), took

  def theirs():
    runner = AutoAttack(model, norm='Linf', eps=eps, seed=0, device=device)
    begin = time.perf_counter()
    x_adv = runner.run_standard_evaluation(x, y, bs=count)
    with torch.no_grad():
      right = (model(x_adv).argmax(1) == y).float().mean().item()
    return right, time.perf_counter() - begin

  begin = time.perf_counter()
  ours()  # compiles
  print(f'ours compiles and runs in {time.perf_counter() - begin:.1f} s')
  for name, run in {'ours': ours, 'theirs': theirs}.items():
    right, took = run()
    result[name] = dict(accuracy=right, seconds=took)
    print(f'{name:<8}{right:>8.1%}{took:>9.1f} s', flush=True)
  result['ratio'] = result['ours']['seconds'] / result['theirs']['seconds']
  print(f'ours takes {result["ratio"]:.2f} of the time of the original')
  return result


def main(_):
  """Runs the parts, each with its line of JSON."""
  if _FOUND.value:
    np.savez(_FOUND.value, **numbers())
    return
  device = jax.devices()[0]
  print(f'{device.device_kind}, jax {jax.__version__}')
  for name in _PARTS.value:
    begin = time.perf_counter()
    part = dict(correct=correct, layer=layer, mfu=mfu, attack=attack)[name]
    print(json.dumps({name: part()}), flush=True)
    print(f'# {name} took {time.perf_counter() - begin:.0f} s', flush=True)


if __name__ == '__main__':
  app.run(main)
