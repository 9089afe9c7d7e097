"""The attack engine: any JAX function, many images. It never sees a model."""
