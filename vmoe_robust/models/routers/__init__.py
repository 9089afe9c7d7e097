"""The routers there are; each file has a `Router` module and a `run`."""

from vmoe_robust.models.routers import expert_choice, soft, top_k

ROUTERS = {'top_k': top_k, 'expert_choice': expert_choice, 'soft': soft}
