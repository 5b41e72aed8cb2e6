"""Device memory, and synchronisation."""

import torch

GIB = 2**30


def wait_for(device: str) -> None:
    """Waits until the device has finished all work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Resets the device's peak memory; on the CPU, the peak of a process cannot be reset."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def limit(device: str, num_bytes: int) -> None:
    """Limits this process to as much memory as a smaller device has."""
    if device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, num_bytes / torch.cuda.get_device_properties(0).total_memory)
        )


def reserved(device: str) -> int:
    """The peak bytes that PyTorch reserved on the device, its cache included; 0 on the CPU."""
    return torch.cuda.max_memory_reserved() if device.startswith("cuda") else 0


def gibibytes(num_bytes: int) -> str:
    """Formats bytes for a table."""
    return f"{num_bytes / GIB:.1f} GiB"
