"""Clean accuracy and loss over a split."""

from collections.abc import Callable, Iterable

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from vmoe_robust.models import Model, losses
from vmoe_robust.report.verdicts import is_right
from vmoe_robust.robustness.measure import classes
from vmoe_robust.robustness.target import as_floats


@flax.struct.dataclass
class Metrics(metrics.Collection):
  """Means over the examples that the mask keeps."""

  accuracy: metrics.Average.from_output('right')  # type: ignore[valid-type]
  loss: metrics.Average.from_output('loss')  # type: ignore[valid-type]


Forward = Callable[[PyTree, dict[str, Array]], Metrics]


def make(model: Model, config: ConfigDict) -> Forward:
  """A jitted `(params, batch) -> Metrics`."""

  def forward(params, batch):
    images = as_floats(batch['image'])
    wanted = losses.targets(batch['label'], config.model.num_classes)
    logits, _ = model.apply(
      params,
      images,
      experts=config.eval.experts,
      mask=batch['mask'],
      labels=wanted.argmax(-1),
    )
    return Metrics.single_from_model_output(
      right=is_right(classes(logits), batch['label']).astype(jnp.float32),
      loss=losses.classification(logits, wanted, config.train.loss),
      mask=batch['mask'].astype(jnp.float32),
    )

  return jax.jit(forward)


def evaluate(
  forward: Forward, params: PyTree, batches: Iterable[dict[str, Array]]
) -> dict[str, float]:
  """Accuracy and loss over all batches."""
  total = Metrics.empty()
  for batch in batches:
    total = total.merge(forward(params, batch))
  return {name: float(value) for name, value in total.compute().items()}
