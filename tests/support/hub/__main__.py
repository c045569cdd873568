"""``python -m tests.support.hub FOLDER [--port N]``: a hub to try things against by hand, until it is interrupted."""

import argparse
import contextlib
import threading
from pathlib import Path

from tests.support.hub.server import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.hub", description="A model hub on this machine.")
    parser.add_argument("folder", type=Path, help="where the repositories are kept, across restarts")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--part-bytes", type=int, help="larger files go up in parts of this size")
    parser.add_argument("--no-xet", action="store_true", help="a hub without Xet storage")
    given = parser.parse_args()
    with Hub(given.folder, part_bytes=given.part_bytes, xet=not given.no_xet, port=given.port) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={hub.token}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
