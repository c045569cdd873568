"""Rung 1 of the ladder: our BLOOM and Hugging Face's compute the same logits and the same activations."""

import dataclasses

import pytest
import torch
from transformers import BloomConfig as HFConfig
from transformers import BloomForCausalLM

from megatron_poro.config.run import AttentionBackend, Recompute
from megatron_poro.errors import ConfigError
from megatron_poro.models.causal_lm import CausalLM, whole_model
from megatron_poro.models.families import family
from tests.support.tiny import TINY

PLACES = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "self_attention.query_key_value",
    "attention.out": "self_attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
TOP = {"embedding": "word_embeddings", "embedding_norm": "word_embeddings_layernorm", "final_norm": "ln_f"}


def hf_name(role: str) -> str:
    """Written out here, apart from the table that the export uses: two independent witnesses."""
    if role in TOP:
        return f"transformer.{TOP[role]}"
    _, number, place = role.split(".", 2)
    return f"transformer.h.{number}.{PLACES[place]}"


def twins(heads: int) -> tuple[CausalLM, BloomForCausalLM]:
    """The same weights in both models, every tensor different from its initial constant."""
    shape = dataclasses.replace(TINY, num_heads=heads, hidden_size=8 * heads)
    ours = whole_model(shape, seed=5)
    theirs = BloomForCausalLM(
        HFConfig(hidden_size=shape.hidden_size, n_layer=shape.num_layers, n_head=heads, vocab_size=shape.vocab_size)
    ).eval()
    weights = theirs.state_dict()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            role, leaf = name.rsplit(".", 1)
            weights[f"{hf_name(role)}.{leaf}"].copy_(parameter)
    return ours.eval(), theirs


@pytest.mark.parametrize("heads", [1, 3, 4, 7])
def test_logits_equal_hugging_face(heads: int) -> None:
    ours, theirs = twins(heads)
    tokens = torch.randint(TINY.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_every_activation_equals_hugging_face() -> None:
    """The first layer that differs would be named, not only the logits."""
    ours, theirs = twins(4)
    seen: dict[str, torch.Tensor] = {}
    roles = ["embedding", "embedding_norm", "final_norm"]
    roles += [f"blocks.{n}.{place}" for n in range(TINY.num_layers) for place in PLACES]
    for role in roles:
        ours.get_submodule(role).register_forward_hook(lambda m, i, o, r=role: seen.__setitem__(r, o))
        theirs.get_submodule(hf_name(role)).register_forward_hook(
            lambda m, i, o, r=role: seen.__setitem__("hf." + r, o)
        )
    tokens = torch.randint(TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours(tokens)
        theirs(tokens)
    for role in roles:
        torch.testing.assert_close(
            seen[role], seen["hf." + role], atol=1e-5, rtol=1e-5, msg=lambda m, r=role: f"{r}: {m}"
        )


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("backend", [AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH])
def test_recomputation_and_backend_change_no_gradient(recompute: Recompute, backend: AttentionBackend) -> None:
    tokens = torch.randint(TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    gradients = []
    for options in ((Recompute.NONE, AttentionBackend.EAGER), (recompute, backend)):
        model = whole_model(TINY, seed=5, recompute=options[0], backend=options[1])
        model(tokens).float().logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4)


def test_full_recomputation_keeps_only_block_inputs() -> None:
    """The guard against recomputation that silently does nothing: saved activation bytes must fall."""
    tokens = torch.randint(TINY.vocab_size, (2, 64))
    saved = {}
    for recompute in Recompute:
        kept: dict[int, int] = {}
        model = whole_model(TINY, seed=5, recompute=recompute)
        owned = {parameter.data_ptr() for parameter in model.parameters()}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept, owned: set[int] = owned) -> torch.Tensor:
            if tensor.data_ptr() not in owned:
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(tokens)
        saved[recompute] = sum(kept.values())
    assert saved[Recompute.FULL] < 0.4 * saved[Recompute.NONE]
    assert saved[Recompute.FULL] < saved[Recompute.SELECTIVE] < saved[Recompute.NONE]


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.family=gpt5 is unknown. Use one of: bloom"):
        family("gpt5")
