"""What a chip can do at most, where it is known."""

# Dense bfloat16 FLOP/s of a device, by the start of its `device_kind`; the
# first that fits counts.
_PEAK = {
  'TPU v4 lite': 138e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200 NVL': 835e12,
  'NVIDIA H200': 989e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of one device, None where it is not known."""
  for name, peak in _PEAK.items():
    if device_kind.startswith(name):
      return peak
  return None
