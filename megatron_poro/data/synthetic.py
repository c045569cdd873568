"""A source that needs no files and can be learnt: what follows a token is a fixed rule, now and then broken by chance.

A model that knows the rule is only surprised by restarts: with ``p = restart`` its loss tends to
``p ln(vocab_size) - p ln p - (1 - p) ln(1 - p)``, for 256 ids and one restart in 20 that
is 0.48 instead of ln 256 = 5.55.
"""

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.samples import Piece
from megatron_poro.data.source import Sample
from megatron_poro.errors import ConfigError

MULTIPLIER = 5
INCREMENT = 3


class SyntheticSource:
    """Samples in which token ``t`` is followed by ``(5 t + 3) mod vocab_size``, with chance ``restart`` by any.

    Raises:
        ConfigError: if a size is not positive, or the vocabulary is too large for the arithmetic.
    """

    def __init__(
        self,
        name: str,
        *,
        num_samples: int,
        sequence_length: int,
        vocab_size: int,
        seed: int = 0,
        restart: float = 0.05,
    ) -> None:
        """Makes a source of ``num_samples`` samples; ``seed`` and the sample's number alone decide its tokens."""
        if min(num_samples, sequence_length, vocab_size) < 1 or vocab_size > 2**31:
            raise ConfigError(
                f"synthetic source {name!r}: num_samples={num_samples}, sequence_length={sequence_length} and "
                f"vocab_size={vocab_size} must be positive, vocab_size at most 2**31."
            )
        self.name = name
        self._num_samples = num_samples
        self._vocab_size = vocab_size
        self._seed = seed
        self._restart = restart
        # k applications of the rule are again t -> scale[k] * t + offset[k]
        self._scale, self._offset = _powers(sequence_length + 1, vocab_size)

    @property
    def samples_per_epoch(self) -> float:
        """All of its samples."""
        return self._num_samples

    def __len__(self) -> int:
        return self._num_samples

    def pieces(self, index: int) -> list[Piece]:
        """No documents."""
        return []

    def sample(self, index: int) -> Sample:
        """Sample ``index``, every label counting."""
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of synthetic source {self.name!r}, which has {self._num_samples}")
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        length = len(self._scale)
        drawn = random.integers(self._vocab_size, size=length)
        restarts = random.random(length) < self._restart
        restarts[0] = True
        positions = np.arange(length)
        begin = np.maximum.accumulate(np.where(restarts, positions, 0))
        steps = positions - begin
        return Sample((self._scale[steps] * drawn[begin] + self._offset[steps]) % self._vocab_size)


def _powers(length: int, modulus: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scale and offset of 0 to ``length - 1`` applications of the rule, reduced by the modulus."""
    scale, offset = np.ones(length, dtype=np.int64), np.zeros(length, dtype=np.int64)
    for step in range(1, length):
        scale[step] = scale[step - 1] * MULTIPLIER % modulus
        offset[step] = (offset[step - 1] * MULTIPLIER + INCREMENT) % modulus
    return scale % modulus, offset
