"""The fields of `config.study` with their defaults."""

# Of ImageNet-C (arXiv:1903.12261), in the order of its tables. A corruption's
# draws follow its place here.
CORRUPTIONS = (
  *('gaussian_noise', 'shot_noise', 'impulse_noise'),
  *('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
  *('snow', 'frost', 'fog', 'brightness'),
  *('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
)


def study_fields() -> dict:
  """Which study, and a group of fields for each, with their defaults."""
  return dict(
    name='corruptions',  # the study that is run: the name of a group below
    names=(),  # several in one start, each in WORKDIR/NAME, instead of `name`
    batch_dependence=dict(
      draws=5,  # of other neighbours
      batch_size=0,  # 0: the evaluation's
    ),
    corruptions=dict(
      names=CORRUPTIONS,
      severities=(1, 2, 3, 4, 5),
      frost_dir='',  # with the authors' photographs frost1.png and so on; '':
      # frost is drawn, and its numbers are not those of ImageNet-C
      batch_size=0,  # 0: the evaluation's
    ),
    certificates=dict(
      sigma=0.25,  # of the noise, in units of pixels in [0, 1]
      n0=100,  # draws that select a class
      n=10_000,  # draws that estimate its probability
      alpha=0.001,  # each certificate is false with at most this probability
      radii=(0.0, 0.25, 0.5, 0.75, 1.0),  # to report, L2, units of pixels
      every=1,  # every k-th example of the split, first is 0
      batch_size=0,  # noisy images at a time; 0: the evaluation's
    ),
    forced_expert=dict(
      blocks=(),  # numbers of sparse blocks; (): all
      experts=(),  # numbers of experts, from 0; (): all
      batch_size=0,  # 0: the evaluation's
    ),
    frozen_routing=dict(batch_size=0),  # 0: the evaluation's
    jacobian=dict(
      iterations=30,  # of the power method, for each term and layer
      batch_size=0,  # 0: the evaluation's
    ),
    pruning=dict(
      removed=(),  # numbers of experts; (): 1 to all but one
      draws=5,  # of experts that are removed at random
      attack_pruned=False,  # x_adv of each pruned model, not of the whole one
      batch_size=0,  # 0: the evaluation's
    ),
    router_controls=dict(
      draws=5,  # of the random router
      batch_size=0,  # 0: the evaluation's
    ),
    routing_attacks=dict(
      left_by='autoattack',  # an attack as config.attack.name; which of the
      # images that it left do the others break?
      lambdas=(0.1, 1.0, 10.0),  # weights of the divergence of routing
      batch_size=0,  # 0: the evaluation's
    ),
    routing_change=dict(batch_size=0),  # 0: the evaluation's
    substitution=dict(batch_size=0),  # 0: the evaluation's
    knobs=dict(
      selected=(),  # K; (): 1, 2, 4 and so on, up to all experts
      kept=(),  # numbers of experts, the most used; (): as above
      noise=(1.0, 4.0),  # of the router's logits, times training's; (): none
      capacity=(0.5, 1.0, 2.0),  # factors; what images share slots see depends
      # on the batch; (): none
      attack_draws=8,  # of noise, in the gradient of the attack
      verdict_draws=20,  # of noise, whose mean probabilities are judged
      batch_size=0,  # 0: the evaluation's
    ),
    load=dict(batch_size=0),  # 0: the evaluation's
    losses=dict(
      auxiliary_weight=1.0,  # of the routers' loss, beside that of the class
      batch_size=0,  # 0: the evaluation's
    ),
    lipschitz=dict(
      pairs=10,  # of points in the ball of each image
      iterations=30,  # of the power method
      batch_size=0,  # 0: the evaluation's
    ),
    margin=dict(
      tokens=0,  # drawn of each image, each a backward pass a block; 0: all
      batch_size=0,  # 0: the evaluation's
    ),
    misrouting=dict(
      names=CORRUPTIONS,  # frost is drawn
      severities=(1, 2, 3, 4, 5),
      batch_size=0,  # 0: the evaluation's
    ),
    norm_union=dict(
      linf=8 / 255,  # the radius in each norm; these are usual for CIFAR-10
      l2=0.5,
      l1=12.0,
      batch_size=0,  # 0: the evaluation's
    ),
    theory=dict(
      draws=20,  # of data, and of the models fitted to them
      experts=(2, 4, 8, 16),  # each divides `points` and `blocks_dimension`
      points=256,  # with random labels
      dimension=1024,  # of these points; more than there are of them
      mlp_dimension=64,  # of the points that small MLPs fit
      mlp_width=64,  # of an expert, and of the dense MLP
      disagreements=(0.0, 0.25, 0.5, 0.75, 1.0),  # of the teacher's experts
      blocks_dimension=32,  # of the inputs in blocks
      blocks_noise=0.5,  # deviation of their noise; the signal's is 1
      misrouted=(0.0, 0.2, 0.4, 0.6, 0.8),  # shares of wrong decisions
    ),
    transfer=dict(
      others=(),  # checkpoints beside `config.checkpoint`, as it names one
      found=(),  # their steps and checksums; the study fills this in
      batch_size=0,  # 0: the evaluation's
    ),
  )
