"""Every field of an experiment once, with its default, meaning and limits."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vmoe_robust.config.study_fields import study_fields

# Of the fields' names and meanings. Whoever renames, moves or removes a field
# raises it, and tells `config.saved` what became of the field.
VERSION = 1

# How a run is carried out. These change no number that it finds, as long as
# config.data.dir has the same data.
MACHINE_FIELDS = (
  'config.compilation_cache',
  'config.mesh.',
  'config.save.',
  'config.data.dir',
  'config.data.threads',
  'config.data.workers',
  'config.data.prefetch',
  'config.data.cache_bytes',
  'config.train.log_every',
  'config.train.profile_steps',
  'config.train.remat',
)


def machine_fields(data: str) -> tuple[str, ...]:
  """Fields that change no number that is found.

  Args:
    data: the name of the data set. Of a folder the directory is the data set.
  """
  if data != 'folder':
    return MACHINE_FIELDS
  return tuple(name for name in MACHINE_FIELDS if name != 'config.data.dir')


def default() -> ConfigDict:
  """The configuration with every field at its default."""
  return ConfigDict(
    dict(
      version=VERSION,  # saved with the run; there is nothing to set
      mode='train',  # 'train', 'attack' or 'study'
      seed=0,
      checkpoint='',  # not train: what to judge: a workdir or one of its steps,
      # an official V-MoE prefix (also gs://), a .npz or a .safetensors
      num_selected=0,  # not train: another K to judge it with; 0: the run's,
      # and 2 for weights that come without a configuration
      init_from='',  # train: start from these weights, of whatever `checkpoint`
      # may be; what fits in another way is adapted: see checkpoint/adapt.py
      init_from_except=(),  # weights that are not taken, such as 'head' or
      # 'Encoder/encoderblock_*/Moe', and may be missing here or there
      init_from_noise=0.0,  # of experts that a dense MLP starts, relative
      compilation_cache='user',  # where compiled programs are kept for later
      # starts: 'user' in the user's cache folder, '' nowhere, or a folder
      data=_data(),
      model=_model(),
      mesh=_mesh(),
      train=_train(),
      eval=dict(
        every_steps=0,  # evaluate while training; 0: only at the end
        batch_size=0,  # 0: train.batch_size
        experts='dropless',  # how the experts run: see EXPERT_MODES
      ),
      save=dict(
        every_steps=1000,  # 0: not by steps; at the end in any case
        every_minutes=0.0,  # besides: so long after the last one; 0: never
        best='',  # save when this improves on data.validation, and keep it:
        # 'eval_accuracy', 'eval_loss' or 'robust_accuracy/EPS'
        keep=2,  # the newest checkpoints that stay
        keep_every=0,  # every k-th step stays for ever; 0: none
        on_damage='fall_back',  # resume from the newest undamaged one; 'error'
      ),
      attack=_attack(),
      study=study_fields(),
    )
  )


def _data() -> dict:
  return dict(
    name='digits',  # 'digits', 'folder', or any TFDS name such as 'cifar10'
    dir='',  # where the data are; '': $TFDS_DATA_DIR or ~/tensorflow_datasets
    split='train',  # TFDS syntax; other modes: what to judge, '': eval_split
    eval_split='test',
    validation=0.0,  # share of the training examples that is held out of it:
    # what is measured while training is measured there, and selects
    image_size=8,  # height and width of what the model sees
    resize=0,  # evaluation: shorter side before the central crop; 0: no margin
    crop='none',  # training: 'none' (as evaluation), 'pad' or 'inception'
    pad=0,  # crop='pad': pixels added on each side
    crop_min_area=0.05,  # crop='inception': least fraction of the area
    flip=False,  # training: mirror half of the images
    randaugment_layers=0,  # 0: off
    randaugment_magnitude=10,  # 0 to 30 (arXiv:1909.13719, as in AugReg), of
    # layers if there are any
    mixup=0.0,  # Beta(a, a); 0: off
    on_corrupt='error',  # 'error', or 'skip': masked out and counted
    on_unlabelled='error',  # the same of images whose label is no class
    threads=16,  # that read and decode, a process
    workers=0,  # processes that do so instead; 0: threads only
    resident=placeholder(bool),  # training: the decoded split stays on every
    # device; None: where it fits, and what augments it exists there
    prefetch=2,  # batches on the device ahead of the step
    cache_bytes=4 * 2**30,  # of decoded images that an attack keeps in memory,
    # a process; 50,000 images of 224 x 224 x 3 bytes are 7.5e9: two processes'
  )


def _model() -> dict:
  return dict(
    patch=2,
    hidden=64,
    layers=4,
    heads=4,
    mlp=128,
    num_classes=0,  # 0: the data set's
    channels=0,  # 0: the data set's
    stem='patch',  # 'patch', one convolution as large as a patch, or 'conv',
    # 3x3 convolutions of stride 2, at least two, to the same number of tokens
    head='token',  # 'token', 'gap', 'map' or 'seqpool'
    positions='learned',  # 'learned' or 'sincos'
    pre_logits=0,  # width of the tanh layer before the head; 0: none
    mean=(0.5,),  # images in [0, 1] become (x - mean) / std inside the model;
    std=(0.5,),  # one number for all channels, or one each
    layer_scale=0.0,  # both branches of a block start times this (0.1); 0: off
    dropout=0.0,  # of tokens, branches and hidden units; not of those of routed
    # experts
    stochastic_depth=0.0,  # of the last block, linear from 0 at the first
    compute_dtype='float32',  # 'float32' or 'bfloat16'; weights stay float32
    experts=0,  # E; 0: a dense ViT, and no field of experts below counts
    expert_mlp=0,  # hidden units of an expert; 0: mlp
    shared_experts=0,  # so many more, which every token has (arXiv:2401.06066)
    moe_every=0,  # every n-th block is sparse (2: blocks 1, 3, 5, ...)
    moe_last=0,  # the last n of the odd blocks are sparse
    moe_blocks=(),  # these blocks are sparse, first is 0
    router=dict(
      name='top_k',  # 'top_k', 'expert_choice' or 'soft'; two controls have no
      # weights: 'hash' of a token's position, 'oracle', which knows the class
      selected=1,  # K experts a token (all but soft)
      # These are of top_k alone:
      gate='softmax',  # of the scores; 'sigmoid'; 'uniform': 1 / K, a control
      renormalize=False,  # the gates of a token's experts sum to one
      unit='token',  # what is routed; 'image': the mean of an image's tokens
      frozen=False,  # the router stays as it was drawn, a control
      balance_rate=0.0,  # step of the biases that steer selection alone, by the
      # load (arXiv:2408.15664, which has 0.001); 0: none
      # And these are of several:
      capacity_factor=1.05,  # slots = tokens * K * factor / E
      batch_priority=False,  # tokens of high gate take slots first
      group_images=4,  # images that share capacity; soft is one image always
      noise_std=1.0,  # of the logits, divided by E, while training
      importance_weight=0.005,
      load_weight=0.005,
      gshard_weight=0.0,
      z_weight=0.0,
      slots=1,  # slots an expert and image (soft)
    ),
  )


def _mesh() -> dict:
  return dict(
    data=-1,  # -1: all devices the other axes leave
    expert=-1,  # -1: as many as divide model.experts
    model=1,  # tensor parallelism: heads and hidden units
    fsdp=False,  # weights and optimizer state split over the data axis
    zero1=False,  # the optimizer state alone split over it
  )


def _train() -> dict:
  return dict(
    steps=1000,
    batch_size=128,  # of all devices together
    loss='softmax',  # or 'sigmoid' for multi-label
    label_smoothing=0.0,
    experts='capacity',
    accumulate=1,  # microbatches a step
    remat='',  # computed again in the backward pass: '' nothing, 'dots' all but
    # the matrix products, 'blocks' all but what routers decided
    ema=0.0,  # decay of the averaged weights; 0: none. They start at the drawn
    # ones, of which after n steps a share of ema ** n is left
    log_every=50,
    profile_steps=(),  # (first, last): jax.profiler watches these steps and
    # writes to WORKDIR/profile; (): none
    objective=dict(  # what a step minimises; docs/training.md
      name='natural',  # 'natural', 'pgd', 'trades', 'mart', 'fast', 'nfgsm',
      # or 'advmoe', where routers take a step of their own
      norm='linf',  # of the ball: 'linf', 'l2' or 'l1'
      eps=8 / 255,  # its radius, in units of pixels in [0, 1]
      steps=10,  # gradients of the attack; one of 'fast' and 'nfgsm'
      step_size=0.0,  # in the units of eps; 0: 2.5 * eps / steps, of 'fast'
      # 1.25 * eps, of 'nfgsm' eps
      beta=6.0,  # weight of the divergence ('trades', 'mart', 'advmoe')
      ramp=0.0,  # share of all steps in which eps rises from 0
      clean_share=0.0,  # of a batch that is not attacked (pgd, fast, nfgsm)
      inner='evaluation',  # the attack sees the model as evaluation does:
      # dropless and without draws; 'training': as the step trains it
      route_by_class=False,  # advmoe: routers learn the class modulo E too
    ),
    monitor=dict(  # PGD on held-out images at each evaluation
      eps=0.0,  # radius in the norm of config.attack; 0: off
      steps=5,
      examples=512,
      max_fall=0.2,  # below its best by more is catastrophic overfitting
      on_fall='warn',  # or 'stop'
    ),
    optimizer=dict(
      name='adamw',  # 'adamw', 'sgd' or 'adafactor'
      learning_rate=1e-3,
      schedule='cosine',  # 'cosine', 'linear', 'rsqrt' or 'constant'
      warmup_steps=0,  # of a rate that rises to learning_rate, steps among them
      rsqrt_timescale=10_000,  # schedule='rsqrt'
      weight_decay=0.0,  # decoupled; on kernels alone
      b1=0.9,
      b2=0.999,
      momentum=0.9,  # sgd, adafactor
      moment_dtype='float32',  # or 'bfloat16': the first moment
      clip_norm=1.0,  # of the whole gradient; 0: off
    ),
  )


def _attack() -> dict:
  return dict(
    name='pgd',  # 'pgd', 'paper' (arXiv:2210.10253), 'autoattack', another of
    # ATTACKS, or several of these in their order, 'apgd_ce+square'
    norm='linf',  # 'linf', 'l2' or 'l1'
    eps=(2 / 255, 4 / 255, 8 / 255),  # a sweep, in units of pixels in [0, 1]
    steps=40,  # gradients; of AutoAttack's attacks too
    queries=5000,  # of Square
    step_size=0.0,  # in the units of eps; 0: 2.5 * eps / steps
    random_start=True,
    restarts=0,  # of attacks without targets; 0: as many as each has
    momentum=0.0,  # decay of MI-FGSM (arXiv:1710.06081); 0: plain PGD
    target='',  # '': untargeted; 'runner_up', 'least_likely', 'random'
    class_weight=1.0,  # the attacked loss is class_weight * cross-entropy
    auxiliary_weight=0.0,  # + auxiliary_weight * the routers' losses
    experts='dropless',
    compute_dtype='',  # of the model that is attacked; '': as it is judged
    batch_size=0,  # 0: the evaluation's
    every_steps=0,  # attack while training; 0: only at the end
    at_end=True,  # attack when training ends
    save_images=False,  # keep x_adv beside the records
  )


def moe_blocks(model: ConfigDict) -> tuple[int, ...]:
  """Indices of the sparse blocks, ascending; empty for a dense model."""
  if not model.experts:
    return ()
  if model.moe_blocks:
    return tuple(sorted(model.moe_blocks))
  if model.moe_last:
    return tuple(range(1, model.layers, 2))[-model.moe_last :]
  if model.moe_every:
    return tuple(range(model.moe_every - 1, model.layers, model.moe_every))
  return ()


def batch_size(config: ConfigDict, use: str) -> int:
  """Images in a batch for use 'train', 'eval', 'attack' or 'study'."""
  train = config.train.batch_size
  evaluation = config.eval.batch_size or train
  sizes = {'train': train, 'eval': evaluation}
  if use == 'study':
    return config.study[config.study.name].batch_size or evaluation
  return sizes.get(use) or config[use].batch_size or evaluation


def eps_name(eps: float) -> str:
  """The name of a radius in files and in metrics."""
  return f'{eps:.6g}'


def flatten(config: ConfigDict, prefix: str = 'config') -> dict[str, object]:
  """Every field by its full name, such as 'config.train.steps'."""
  found = {}
  for name in sorted(config):
    path, value = f'{prefix}.{name}', config[name]
    nested = isinstance(value, ConfigDict)
    found |= flatten(value, path) if nested else {path: value}
  return found


def differences(
  a: ConfigDict, b: ConfigDict, ignore: tuple[str, ...] = ()
) -> list[str]:
  """The fields in which two configurations differ, as text.

  Args:
    a: one configuration.
    b: the other one, which the text calls the earlier.
    ignore: fields that may differ, and groups of them with a dot at the end.
  """
  here, there = flatten(a), flatten(b)
  groups = tuple(name for name in ignore if name.endswith('.'))
  return [
    f'{name}={here.get(name)!r} (was {there.get(name)!r})'
    for name in sorted(here | there)
    if here.get(name) != there.get(name)
    and name not in ignore
    and not name.startswith(groups)
  ]
