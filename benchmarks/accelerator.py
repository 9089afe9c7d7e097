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

Times are wall time, the median over a few turns; compiling is left out, and
takes longer than all else: XLA tries kernels out. `layer` took 144 seconds on
an H200; there `mfu` was not through with four programs after 125 seconds, on 16
CPU cores. XLA_FLAGS=--xla_gpu_autotune_level=0 leaves the trials out.

`--long` takes larger batches, more turns and more images. Runs on CPUs too,
with small models, to try the command itself. Tables for people, then one line
of JSON for each part.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial

import backend_numbers
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import subjects
import torch_vit
from absl import app, flags
from flax import traverse_util

from vmoe_robust import config as config_lib
from vmoe_robust import presets
from vmoe_robust.attacks import Budget, ensemble
from vmoe_robust.cost import hardware
from vmoe_robust.evaluate.classifier import Classifier
from vmoe_robust.models import flops, grouped
from vmoe_robust.models.vit import sincos

_PARTS = flags.DEFINE_list('parts', ['correct', 'layer', 'mfu'], 'Which parts.')
_LONG = flags.DEFINE_bool('long', False, 'More of everything.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A trained ViT of ours.')
_EPS = flags.DEFINE_float('eps', 1.0, 'Of the part `attack`, in 1/255.')


def _on_cpu() -> bool:
  return jax.default_backend() == 'cpu'


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
    made = {
      key: threads.submit(subjects.model_programs, config)
      for key, config in asked.items()
    }
  print(f'{"model":<10}{"batch":>6}{"program":>8}{"img/s":>10}{"TFLOP/s":>9}')
  for (name, batch), config in asked.items():
    forward = flops.forward(config.model, config.data.image_size)
    for program in ('train', 'PGD'):
      try:
        run = made[name, batch].result()[program]
        took = seconds(run, 5 if not _LONG.value else 15)
      except Exception as error:  # out of memory, or a kernel refuses this chip
        print(f'{name:<10}{batch:>6}{program:>8}  {str(error)[:200]}')
        continue
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


def torch_twin(loaded: Classifier):
  """A dense classifier of ours in PyTorch, and the device it is on."""
  import torch

  config, size = loaded.config.model, loaded.config.data.image_size
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  weights = traverse_util.flatten_dict(loaded.params, sep='/')
  if config.positions == 'sincos':
    positions = sincos((size // config.patch,) * 2, config.hidden)
  else:
    positions = weights['Encoder/posembed_input/pos_embedding'][0]
  return device, torch_vit.model(
    weights,
    positions,
    patch=config.patch,
    heads=config.heads,
    stem=config.stem,
    head=config.head,
    mean=config.mean,
    std=config.std,
    device=device,
  )


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
  device, model = torch_twin(loaded)
  x = torch.tensor(images.transpose(0, 3, 1, 2).copy()).to(device)
  y = torch.tensor(labels, dtype=torch.long).to(device)
  with torch.no_grad():
    apart = np.abs(model(x).cpu().numpy() - loaded(pixels)).max()
  eps, result = _EPS.value / 255, {'logits differ by': float(apart)}
  print(f'logits differ by {apart:.1e} at most')
  target = loaded.target(images.shape[1:])
  autoattack = ensemble('autoattack', 'linf', target.classes, Budget())
  attacked = subjects.attack(
    target, autoattack, images, labels, 'linf', eps, count
  )

  def ours():
    begin = time.perf_counter()
    return attacked(), time.perf_counter() - begin

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


def correct() -> dict:
  """See `backend_numbers`."""
  return backend_numbers.compared(_LONG.value)


def main(_):
  """Runs the parts, each with its line of JSON."""
  device = jax.devices()[0]
  print(f'{device.device_kind}, jax {jax.__version__}')
  for name in _PARTS.value:
    begin = time.perf_counter()
    part = dict(correct=correct, layer=layer, mfu=mfu, attack=attack)[name]
    print(json.dumps({name: part()}), flush=True)
    print(f'# {name} took {time.perf_counter() - begin:.0f} s', flush=True)


if __name__ == '__main__':
  app.run(main)
