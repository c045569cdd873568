"""Do transformers 5 and 4.57 read our tokenizers to the same ids? Run as ``python -m tests.compatibility.tokenizer``.

Without ``--tokenizer`` a small one of each kind is trained. Every text is encoded here, by `megatron_poro.tokenizer`,
and in each environment by this same file, which there needs nothing but transformers. Makes the second environment
itself; status 1 and the first difference, if there is one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TEXTS = (
    "Tämä on suomenkielinen teksti, jossa on sanoja; ja sanoja on monta. (Niin kuin tässä!)",
    "def encode(self, text: str) -> list[int]:\n\t\treturn [1, 2, 3]  # ids | not words\r\n\n\n",
    "The quick brown fox… 完了、です。 😀\u200d🔥 e\u0301 \ufeff\x00\x1c\x85\xa0\u2003\u3000",
    "<|user|>Käännä suomeksi: a <|assistant|> b</s></s> <pad><filename>x.py<gh_stars>10",
    " leading", "trailing ", "   ", "\n \n", "", "a" * 300, "it's don't I'LL 2023-11-23 1,000.50 €", "</s", "<|user",
    "".join(map(chr, range(0x500))),
)  # fmt: skip


def main() -> int:
    """Compares, or answers the one that compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", help="of transformers to compare with (default: 4.57)")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where it is, or is made")
    parser.add_argument("--tokenizer", type=Path, nargs="*", default=[], metavar="DIR", help="tokenizers to compare")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        _answer(arguments.answer)
        return 0
    from tests.compatibility.environment import RELEASE, interpreter

    pythons = [Path(sys.executable), interpreter(arguments.environment, release=arguments.release or RELEASE)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = arguments.tokenizer or _small_ones(Path(folder))
        return max(_compare(tokenizer, python) for tokenizer in tokenizers for python in pythons)


def _compare(folder: Path, python: Path) -> int:
    from megatron_poro.tokenizer.tokenizer import Tokenizer  # the other environment does not have it

    answer = subprocess.run([python, __file__, "--answer", folder], stdout=subprocess.PIPE, text=True, check=True)
    theirs = json.loads(answer.stdout.splitlines()[-1])
    tokenizer = Tokenizer.load(folder)
    for text, ids in zip(TEXTS, theirs["ids"], strict=True):
        if (ours := tokenizer.encode(text)) != ids:
            print(f"{folder}, transformers {theirs['version']}: {text!r} is {ids}, here {ours}", file=sys.stderr)
            return 1
    special = {"eos": tokenizer.eos_id, "bos": tokenizer.bos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    if special != theirs["special"] or tokenizer.vocab_size != theirs["size"]:
        print(f"{folder}: {theirs['special']} and {theirs['size']} ids, here {special} and {tokenizer.vocab_size}")
        return 1
    print(f"{folder}: {tokenizer.vocab_size:,} ids, {len(TEXTS)} texts as with transformers {theirs['version']}")
    return 0


def _answer(folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    special = {role: getattr(tokenizer, f"{role}_token_id") for role in ("eos", "bos", "pad", "unk")}
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    print(json.dumps({"version": transformers.__version__, "ids": ids, "special": special, "size": len(tokenizer)}))


def _small_ones(folder: Path) -> list[Path]:
    from megatron_poro.tokenizer.sentencepiece_training import train_sentencepiece
    from megatron_poro.tokenizer.training import train_bpe

    train_bpe(iter(TEXTS[:4] * 3), vocab_size=400).save(folder / "bloom")
    train_sentencepiece(iter(TEXTS[:4] * 3), vocab_size=450).save(folder / "sentencepiece")
    return [folder / "bloom", folder / "sentencepiece"]


if __name__ == "__main__":
    sys.exit(main())
