"""Peak speeds of devices."""

import jax

from scripts.compile_for_tpu import CHIPS

# bfloat16 operations per second by the beginning of JAX's name for the device, the first that fits; dense ones.
# Source: NVIDIA's data sheets.
PEAKS = {
    "TPU v4": CHIPS["v4"].peak,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v6": CHIPS["v6e"].peak,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
}


def peak_operations(device: jax.Device, dtype: str) -> float | None:
    """Peak operations per second; None = not known, as for CPUs and for float32."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in PEAKS.items() if device.device_kind.startswith(name)), None)
