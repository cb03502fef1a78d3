"""What is known of devices: their dense bf16 peak, for model FLOPs utilisation and time estimates; and memory."""

import torch

PEAK_BF16_FLOPS = {
    "A10": 125e12,
    "A100": 312e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s by a part of the device's name, from the vendor's data sheets (SXM where there are several)."""


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a device by its name; the longest matching entry, None if there is none."""
    matches = [name for name in PEAK_BF16_FLOPS if name in device_name]
    return PEAK_BF16_FLOPS[max(matches, key=len)] if matches else None


def device_peak_flops(device: torch.device) -> float | None:
    """The peak of the device training runs on; None for CPUs and unknown devices."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def usable_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may take: all, unless it was given a part."""
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(share * torch.cuda.get_device_properties(device).total_memory)
