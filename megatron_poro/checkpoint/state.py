"""What a checkpoint says beside its tensors: ``meta.json``, everything a run needs to go on that is not a tensor.

There is no generator state and no loader state in it: dropout masks and the order of the data are pure functions of the
seed and of the number of consumed samples. Nothing here needs torch.
"""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import megatron_poro
from megatron_poro.errors import CheckpointError
from megatron_poro.parallel.topology import Topology

META_NAME = "meta.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = 1
SEED_POLICY = "initial weights: (run.seed, name); dropout: (run.seed, sample, layer, place, tensor rank where sharded)"
"""What random numbers are a function of; a release that changes it changes this text."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands after an optimizer step.

    Attributes:
        step: optimizer steps taken, also in runs before this one that it continues.
        consumed_samples: samples seen.
        consumed_tokens: tokens seen.
        optimizer_step: steps counted by the optimizer (its bias correction); differs from ``step`` only when moments
            were started afresh.
        config: the resolved config as YAML text.
        identity: the values that must not change when the run goes on (``config.identity``).
        topology: layout of the processes that wrote the checkpoint; for information, any layout can read it.
        tokenizer_fingerprint: of the tokenizer the data was made with.
        milestone: label under which the checkpoint is kept for ever and exported (``100B``), or None.
        check_loss: loss of the run's first ``check_samples`` samples, to prove after loading that model and data are
            the same; or None.
        check_samples: how many these are.
        decayed: names of the parameters that weight decay applies to; None if the checkpoint does not know.
        run_id: of the run that wrote it, made once and kept for ever; empty for a checkpoint no run has written.
        lineage: how often that run had been rewound.
        skipped_steps: steps up to this one whose samples were not learned from.
        guard: what the guard over single steps remembers, so that a resumed run judges steps alike.
        seed_policy: what random numbers are a function of.
        versions: of the software that wrote it.
        created: UTC, ISO 8601.
    """

    step: int
    consumed_samples: int
    consumed_tokens: int
    optimizer_step: int
    config: str
    identity: Mapping[str, Any]
    topology: Topology
    tokenizer_fingerprint: str
    milestone: str | None = None
    check_loss: float | None = None
    check_samples: int = 0
    decayed: Sequence[str] | None = None
    run_id: str = ""
    lineage: int = 0
    skipped_steps: tuple[int, ...] = ()
    guard: Mapping[str, Any] = field(default_factory=dict)
    seed_policy: str = SEED_POLICY
    versions: Mapping[str, str] = field(default_factory=lambda: software_versions())
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def encode(self) -> bytes:
        """The text of ``meta.json``."""
        record = {"format": FORMAT, **dataclasses.asdict(self)}
        return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """Reads a ``meta.json``.

        Raises:
            CheckpointError: if it is missing, damaged, or from a release whose format is newer.
        """
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            written_by = record.pop("format")
            if written_by != FORMAT:
                raise CheckpointError(f"{path} has format {written_by!r}, this release reads {FORMAT}.")
            known = {entry.name for entry in dataclasses.fields(cls)}
            kept = {key: value for key, value in record.items() if key in known}
            skipped = tuple(record.get("skipped_steps", ()))
            return cls(**{**kept, "topology": Topology(**record["topology"]), "skipped_steps": skipped})
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}. It is not a checkpoint.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): use another checkpoint.") from error


def software_versions() -> dict[str, str]:
    """Versions of what computes a run; distributions are only asked for their version, not imported."""
    versions = {"python": platform.python_version(), "megatron_poro": megatron_poro.__version__}
    for name in ("torch", "deepspeed"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
