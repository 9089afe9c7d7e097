"""One question a file: `run(job)` finds the answer, `render(results)` shows it.

A study that looks at the x_adv of the plain model has `ask(job)` besides: what
it asks of a batch and its x_adv, so that several studies share these.

To add one, write its file, name it in `STUDIES`, and give it a group of fields
of that name in `config/study_fields.py`.
"""

from vmoe_robust.studies import (
  batch_dependence,
  certificates,
  corruptions,
  forced_expert,
  frozen_routing,
  jacobian,
  knobs,
  lipschitz,
  load,
  losses,
  margin,
  misrouting,
  norm_union,
  pruning,
  router_controls,
  routing_attacks,
  routing_change,
  substitution,
  theory,
  transfer,
)

# By the names that `config.study.name` may have.
STUDIES = {
  'batch_dependence': batch_dependence,
  'certificates': certificates,
  'corruptions': corruptions,
  'forced_expert': forced_expert,
  'frozen_routing': frozen_routing,
  'jacobian': jacobian,
  'knobs': knobs,
  'lipschitz': lipschitz,
  'load': load,
  'losses': losses,
  'margin': margin,
  'misrouting': misrouting,
  'norm_union': norm_union,
  'pruning': pruning,
  'router_controls': router_controls,
  'routing_attacks': routing_attacks,
  'routing_change': routing_change,
  'substitution': substitution,
  'theory': theory,
  'transfer': transfer,
}
