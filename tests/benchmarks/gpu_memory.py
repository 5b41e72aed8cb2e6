"""What is held on a device, and waiting for it."""

import torch

GIB = 2**30


def wait_for(device: str) -> None:
    """Returns when the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Begins anew to look for the peak of the device's memory; that of a process on the CPU cannot be."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def limit(device: str, num_bytes: int) -> None:
    """Makes the device as small as another for this process."""
    if device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, num_bytes / torch.cuda.get_device_properties(0).total_memory)
        )


def reserved(device: str) -> int:
    """The most bytes that PyTorch took of the device, what it kept for later included; 0 on the CPU."""
    return torch.cuda.max_memory_reserved() if device.startswith("cuda") else 0


def gibibytes(num_bytes: int) -> str:
    """Bytes for a table."""
    return f"{num_bytes / GIB:.1f} GiB"
