"""Text from a model: token by token, each drawn from the model's distribution after everything before it.

The whole prefix goes through the model for every token. That needs no second attention path with a cache, so what is
generated is exactly what the trained model says; it is meant for looking at a model, not for serving it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_poro.errors import ConfigError
from megatron_poro.evaluate.loading import LoadedModel

_UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a longer character to


def generate_text(
    loaded: LoadedModel, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """Continues a prompt, piece by piece: joined, the pieces are the text that follows it.

    Args:
        loaded: model and tokenizer.
        prompt: text to continue; without any, the model begins a document.
        max_new_tokens: upper bound; the end of the document comes before it or not.
        temperature: 0 takes the likeliest token, 1 draws from the model's distribution.
        seed: of the draws.

    Raises:
        ConfigError: if ``temperature`` or ``max_new_tokens`` is negative.
    """
    tokenizer = loaded.tokenizer
    # documents are separated by eos and nothing else, so after it a new one begins
    prompt_ids = tokenizer.encode(prompt) or [tokenizer.eos_id]
    new_ids: list[int] = []
    shown = ""
    for token in generate_ids(loaded, prompt_ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed):
        new_ids.append(token)
        text = tokenizer.decode(new_ids)
        if not text.endswith(_UNFINISHED):
            yield text[len(shown) :]
            shown = text
    if rest := tokenizer.decode(new_ids)[len(shown) :]:
        yield rest


def generate_ids(
    loaded: LoadedModel, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int
) -> Iterator[int]:
    """The tokens that follow a prompt of at least one token, without the one that ends the document.

    Raises:
        ConfigError: if ``temperature`` or ``max_new_tokens`` is negative.
    """
    if temperature < 0.0 or max_new_tokens < 0:
        raise ConfigError(
            f"temperature={temperature} and max-new-tokens={max_new_tokens} must not be negative; "
            "temperature 0 takes the likeliest token."
        )
    ids = list(prompt_ids)
    device = next(loaded.model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        window = torch.tensor([ids[-loaded.context_tokens :]], device=device)  # [1, s]
        with torch.no_grad():
            logits = loaded.model(window)[0, -1]  # [v]
        # rows beyond the tokenizer's ids are padding of the matrix
        token = choose_token(logits[: loaded.tokenizer.vocab_size], temperature=temperature, generator=generator)
        if token == loaded.tokenizer.eos_id:
            return
        ids.append(token)
        yield token


def choose_token(logits: Tensor, *, temperature: float, generator: torch.Generator) -> int:
    """Draws a token from logits ``[v]`` on any device; with temperature 0 the likeliest, and then nothing is drawn."""
    logits = logits.float().cpu()
    if temperature == 0.0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator))
