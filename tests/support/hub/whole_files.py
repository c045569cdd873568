"""Small files that other requests may read while they are written: they see the old content or the new one."""

import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name and gives it its own when it is complete."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
