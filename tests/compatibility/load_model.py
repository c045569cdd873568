"""What one release of transformers makes of exported models, as JSON on stdout. Run by any interpreter, by its path.

It imports nothing of this project: it stands for a reader who has only the folder.
"""

import hashlib
import json
import sys
import warnings
from typing import Any

import torch
import transformers

TEXTS = ("Hyvää päivää, world!\n", "def f(x):\n\treturn x  # 日本語 🙂", "</s> a  b")
TOKENS = 64
NEW_TOKENS = 12


def main(folders: list[str]) -> None:
    """Prints one object: for each folder what was found."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = {folder: look_at(folder) for folder in folders}
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "folders": found}))


def look_at(folder: str) -> dict[str, Any]:
    """Everything of a model that must not depend on the release that loads it."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype="auto", output_loading_info=True
    )
    model, info = loaded
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tensors = {name: fingerprint(tensor) for name, tensor in sorted(model.state_dict().items())}
    return {
        "class": type(model).__name__,
        "format": str(model.dtype),
        "unplaced": [key for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[part]],
        "head is tied": model.lm_head.weight.data_ptr() == model.transformer.word_embeddings.weight.data_ptr(),
        "tensors": tensors,
        **computed(model.float().eval()),
        "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "inputs": sorted(tokenizer(TEXTS[0]).keys()),
        "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in TEXTS],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        "is fast": tokenizer.is_fast,
    }


def computed(model: Any) -> dict[str, Any]:
    """Logits in fp32, and a greedy continuation."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(model.config.vocab_size, (2, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        text = model.generate(
            tokens[:1, :8], attention_mask=torch.ones_like(tokens[:1, :8]), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return {"logits": fingerprint(logits), "greedy": text[0].tolist()}


def fingerprint(tensor: torch.Tensor) -> str:
    """Format, shape and SHA-256 of the bytes."""
    content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    main(sys.argv[1:])
