"""What an attack is given and what it gives back."""

from collections.abc import Callable

from jaxtyping import Array, Bool, Float, Key

# Pixels in [0, 1].
Images = Float[Array, 'batch height width channels']

# One typed PRNG key an image: what is drawn follows the image, not the batch
# it is in, nor the mesh.
Keys = Key[Array, 'batch']

# Images to the loss of each, which the attack raises, and whether each is
# broken: misclassified or, if the attack has targets, taken for its target.
Loss = Callable[[Images], tuple[Float[Array, 'batch'], Bool[Array, 'batch']]]

# (loss, images, keys, eps) to x_adv. The radius eps is traced, so a sweep
# compiles once.
Attack = Callable[[Loss, Images, Keys, Float[Array, '']], Images]
