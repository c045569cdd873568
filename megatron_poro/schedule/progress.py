"""How far a run is: all the state of a run that is not a tensor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What has been consumed by completed optimizer steps.

    Attributes:
        step: completed optimizer steps.
        samples: samples consumed by them; also the position in the data.
        tokens: tokens in those samples.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        assert min(self.step, self.samples, self.tokens) >= 0, f"progress cannot be negative: {self}"

    def advance(self, *, samples: int, tokens: int) -> "Progress":
        """The progress after one more step that consumed so many samples and tokens."""
        return Progress(self.step + 1, self.samples + samples, self.tokens + tokens)
