"""Values that several experiments share: model sizes and training recipes."""

from vmoe_robust.config import UserError

# ViT sizes of "On the Adversarial Robustness of Mixture of Experts"
# (arXiv:2210.10253) and of "Scaling Vision with Sparse Mixture of Experts"
# (arXiv:2106.05974). The patch side is written behind a slash: 'B/16'.
MODEL_SIZES = {
  'S': dict(hidden=512, layers=8, mlp=2048, heads=8),
  'B': dict(hidden=768, layers=12, mlp=3072, heads=12),
  'B+': dict(hidden=832, layers=15, mlp=3328, heads=13),
  'B++': dict(hidden=896, layers=18, mlp=3584, heads=14),
  'B+++': dict(hidden=960, layers=21, mlp=3840, heads=15),
  'L': dict(hidden=1024, layers=24, mlp=4096, heads=16),
  'H': dict(hidden=1280, layers=32, mlp=5120, heads=16),
  # Of the 15-billion-parameter V-MoE; see configs/moe_h14.py.
  'H+': dict(hidden=1408, layers=48, mlp=6400, heads=16),
}


def model_size(name: str) -> dict:
  """The fields of `config.model` for a size such as 'B/16' or 'B++/32'."""
  size, _, patch = name.partition('/')
  if size not in MODEL_SIZES or not patch.isdigit():
    raise UserError(
      f'model size {name!r} is not known; use one of '
      f'{", ".join(MODEL_SIZES)} with a patch side, such as B/16'
    )
  return dict(MODEL_SIZES[size], patch=int(patch))


# The radii of arXiv:2210.10253, in units of pixels in [0, 1].
PAPER_EPS = (
  *(0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003),
  *(level / 255 for level in range(1, 21)),
)

# The sparse models of arXiv:2106.05974, "Every 2"; a dense model leaves these
# fields of `config.model` alone.
SPARSE = dict(
  experts=32,
  moe_every=2,
  router=dict(selected=2, capacity_factor=1.05, group_images=8),
)

# ImageNet: `config.data` to pre-train at 224 pixels, with the "medium2"
# augmentation of "How to train your ViT?" (arXiv:2106.10270), and to
# fine-tune at 384.
IMAGENET_224 = dict(
  name='imagenet2012',
  split='train',
  eval_split='validation',
  image_size=224,
  resize=256,
  crop='inception',
  flip=True,
  randaugment_layers=2,
  randaugment_magnitude=15,
  mixup=0.5,
)
IMAGENET_384 = dict(
  IMAGENET_224, image_size=384, resize=384, randaugment_layers=0, mixup=0.0
)

# 300 epochs of ImageNet with the optimizer of arXiv:2106.05974; a config adds
# its learning rate from PEAK_LEARNING_RATES.
PRETRAIN = dict(
  data=IMAGENET_224,
  train=dict(
    steps=93_835,
    batch_size=4096,
    optimizer=dict(
      name='adamw',
      schedule='linear',
      warmup_steps=10_000,
      weight_decay=0.1,
      clip_norm=1.0,
      moment_dtype='bfloat16',
    ),
  ),
  eval=dict(every_steps=5000, batch_size=1024),
  save=dict(every_steps=1000),
  attack=dict(eps=PAPER_EPS),
)

# arXiv:2106.05974 for S, B and L; for the sizes between B and L, which
# arXiv:2210.10253 adds, that of B.
PEAK_LEARNING_RATES = {
  'S/32': 1e-3,
  'B/32': 8e-4,
  'B/16': 8e-4,
  'B+/32': 8e-4,
  'B++/32': 8e-4,
  'B+++/32': 8e-4,
  'L/16': 4e-4,
}

# How arXiv:2210.10253 fine-tunes on ImageNet at 384 pixels.
FINETUNE = dict(
  data=IMAGENET_384,
  train=dict(
    steps=10_000,
    batch_size=1024,
    optimizer=dict(
      name='sgd',
      momentum=0.9,
      learning_rate=0.03,
      schedule='cosine',
      warmup_steps=500,
      clip_norm=10.0,
    ),
  ),
  eval=dict(every_steps=1000, batch_size=1024),
  save=dict(every_steps=500),
  attack=dict(eps=PAPER_EPS),
)

# The V-MoE checkpoints that Google released (google-research/vmoe): all have 8
# experts of which a token selects 2.
OFFICIAL = 'gs://vmoe_checkpoints/'
OFFICIAL_S32 = OFFICIAL + 'vmoe_s32_last2_ilsvrc2012_randaug_light1'
OFFICIAL_B16 = OFFICIAL + 'vmoe_b16_imagenet21k_randaug_strong'
# AutoAttack on those for ImageNet, at the radii at which models that were not
# trained against attacks fall, and at 4/255, where others are compared.
ATTACK_OFFICIAL = dict(
  mode='attack',
  data=dict(name='imagenet2012', split='validation'),
  attack=dict(
    name='autoattack',
    eps=(0.25 / 255, 1 / 255, 4 / 255),
    steps=100,
    batch_size=256,
  ),
)
# How google-research/vmoe fine-tunes them on ImageNet at 384 pixels. Their
# heads are of another loss.
FINETUNE_OFFICIAL = dict(
  model=dict(
    experts=8,
    compute_dtype='bfloat16',
    router=dict(selected=2, capacity_factor=1.5, group_images=8),
  ),
  init_from_except=('head',),
  train=dict(optimizer=dict(learning_rate=0.003)),
)

# Fine-tuning against attacks on ImageNet at 4/255 after the recipe of
# arXiv:2206.07288: one step of PGD, a radius that rises over 10 epochs (of 30
# here), AdamW with a strong decay, and weak augmentation.
FINETUNE_ADVERSARIAL = dict(
  train=dict(
    steps=37_500,
    objective=dict(
      name='pgd', eps=4 / 255, steps=1, step_size=4 / 255, ramp=10 / 30
    ),
    monitor=dict(eps=4 / 255, examples=1024),
    optimizer=dict(
      name='adamw',
      learning_rate=5e-4,
      warmup_steps=1250,
      weight_decay=0.5,
      clip_norm=1.0,
    ),
  ),
  data=dict(validation=0.01, randaugment_layers=0, mixup=0.0),
  attack=dict(name='autoattack', eps=(4 / 255,), steps=100),
)

# What the two models of each small data set share.
DIGITS = dict(
  data=dict(
    name='digits', split='train', eval_split='test', image_size=8, mixup=0.3
  ),
  train=dict(
    steps=1600,
    batch_size=64,
    ema=0.99,
    optimizer=dict(learning_rate=2e-3, warmup_steps=50, weight_decay=0.05),
  ),
  save=dict(every_steps=400),
  eval=dict(batch_size=120),
  attack=dict(eps=(8 / 255, 16 / 255, 32 / 255), steps=20),
)
DIGITS_VIT = dict(
  patch=2, hidden=64, layers=4, heads=4, mlp=128, head='gap', positions='sincos'
)

# Trained against PGD (arXiv:1706.06083) and watched on held-out training
# images, on which the recipe was chosen too: a radius somewhat above the
# attacked one, images moved by up to a pixel, and twice the steps. Mixed
# classes would blunt the attack.
DIGITS_ADVERSARIAL = dict(
  data=dict(mixup=0.0, validation=0.1, crop='pad', pad=1),
  train=dict(
    steps=3200,
    objective=dict(name='pgd', eps=20 / 255, steps=5),
    monitor=dict(eps=16 / 255),
  ),
  eval=dict(every_steps=800),
  save=dict(every_steps=800),
  attack=dict(name='autoattack', eps=(16 / 255,), steps=100, batch_size=120),
)

CIFAR10 = dict(
  data=dict(
    name='cifar10',
    split='train',
    eval_split='test',
    image_size=32,
    crop='pad',
    pad=4,
    flip=True,
  ),
  train=dict(
    steps=12_000,
    batch_size=64,
    optimizer=dict(learning_rate=1e-3, warmup_steps=400, weight_decay=0.05),
  ),
  eval=dict(every_steps=3000),
  save=dict(every_steps=1000),
  attack=dict(eps=(2 / 255, 8 / 255), steps=10),
)
CIFAR10_ADVERSARIAL = dict(
  data=dict(validation=0.02),
  train=dict(
    objective=dict(name='pgd', eps=8 / 255, steps=5),
    monitor=dict(eps=8 / 255),
  ),
  attack=dict(eps=(8 / 255,), steps=20),
)
CIFAR10_VIT = dict(
  stem='conv',
  patch=4,
  hidden=128,
  layers=6,
  heads=4,
  mlp=256,
  head='seqpool',
)

# One expert a token: the active FLOPs are the dense model's.
SMALL_SPARSE = dict(experts=8, moe_every=2, router=dict(selected=1))
