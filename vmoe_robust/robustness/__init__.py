"""The attack engine: any JAX function, many images; it imports no model."""
