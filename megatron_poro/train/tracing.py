"""What a process and its device do, operation by operation, for ``chrome://tracing`` or Perfetto."""

import gzip
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from torch.profiler import profile, record_function


class Trace:
    """A recording by ``torch.profiler``, of the CPU and of a GPU where there is one. Made ready when it is made.

    Attributes:
        is_running: whether it records.
    """

    def __init__(self) -> None:
        self._profiler = profile()
        self._profiler.prepare_trace()
        self.is_running = False

    def start(self) -> None:
        """Records from now on."""
        self._profiler.start_trace()
        self.is_running = True

    def stop(self) -> None:
        """Ends the recording. One that never began begins first: a process has one profiler, and must let go of it."""
        if not self.is_running:
            self.start()
        self._profiler.stop_trace()
        self.is_running = False

    def step(self, number: int) -> AbstractContextManager[None]:
        """The block appears in the recording as a step."""
        return record_function(f"step {number}")

    def write(self, path: Path) -> None:
        """Writes what was recorded as gzipped JSON.

        Args:
            path: of the file, in a folder that has no name yet.

        Raises:
            OSError: if a file cannot be written.
        """
        plain = path.with_suffix("")
        try:
            self._profiler.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=4) as target:
                shutil.copyfileobj(source, target)
        finally:
            plain.unlink(missing_ok=True)
