"""One input pipeline for training, evaluation and attack."""

from vmoe_robust.data.classes import match_classes as match_classes
from vmoe_robust.data.classes import names_compare as names_compare
from vmoe_robust.data.classes import require_one_order as require_one_order
from vmoe_robust.data.corruptions import Corruption as Corruption
from vmoe_robust.data.datasets import open_source as open_source
from vmoe_robust.data.hold_out import hold_out as hold_out
from vmoe_robust.data.hold_out import lost_classes as lost_classes
from vmoe_robust.data.load import describe_skipped as describe_skipped
from vmoe_robust.data.load import nearly_black as nearly_black
from vmoe_robust.data.load import require_images as require_images
from vmoe_robust.data.mixup import mixup as mixup
from vmoe_robust.data.pipeline import EvalBatches as EvalBatches
from vmoe_robust.data.pipeline import TrainBatches as TrainBatches
from vmoe_robust.data.pipeline import eval_batches as eval_batches
from vmoe_robust.data.pipeline import train_batches as train_batches
from vmoe_robust.data.residence import on_devices as on_devices
from vmoe_robust.data.resident import Resident as Resident
from vmoe_robust.data.resident import resident_batch as resident_batch
from vmoe_robust.data.rows import examples as examples
from vmoe_robust.data.source import Part as Part
from vmoe_robust.data.source import Source as Source
from vmoe_robust.data.splits import seen_in_training as seen_in_training
from vmoe_robust.data.textures import load_frost as load_frost
