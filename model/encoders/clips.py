"""Which parts of videos and sounds ImageBind takes."""

CLIP_SECONDS = 2


def clip_starts(duration: float, num_clips: int) -> list[float]:
    """Start times of clips in seconds, evenly spaced; the last clip ends with the medium."""
    latest = max(duration - CLIP_SECONDS, 0.0)
    return [latest * i / (num_clips - 1) for i in range(num_clips)]
