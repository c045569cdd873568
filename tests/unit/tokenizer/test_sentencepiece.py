"""SentencePiece models: the same ids after import, and a named refusal where that is impossible."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer import sentencepiece_import
from megatron_poro.tokenizer.sentencepiece_import import from_model_content, import_sentencepiece
from megatron_poro.tokenizer.sentencepiece_training import train_sentencepiece
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer
from tests.house.checkout import ROOT

FINNISH = sorted((ROOT / "data_prep/recipes/sample/finnish").iterdir())
SOURCES = sorted((ROOT / "megatron_poro/tokenizer").glob("*.py"))
TEXTS = [path.read_text(encoding="utf-8") for path in (*FINNISH, *SOURCES, ROOT / "docs/data.md", ROOT / "README.md")]
SPECIAL = ("<unk>", "<s>", "</s>", "<mark>")
FRAGMENTS = [
    "a",
    "aa",
    "aba",
    " ",
    "  ",
    "\n",
    "\t",
    "\0",
    "▁",
    "ä",
    "日本",
    "😀",
    "\u0301",
    "import",
    "saun",
    "x|",
    "==",
]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "prefix": {"add_dummy_prefix": True, "remove_extra_whitespaces": False},
    "trimmed": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "across_words": {"split_by_whitespace": False, "remove_extra_whitespaces": True},
    "user_defined": {
        "user_defined_symbols": ["import", "x|", "aa", "▁▁", "two words"],
        "remove_extra_whitespaces": False,
    },
}


def model_content(**options: Any) -> bytes:
    """A small BPE model, as the bytes of its ``.model`` file."""
    content = io.BytesIO()
    defaults: dict[str, Any] = {
        "vocab_size": 900,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "character_coverage": 0.999,
        "control_symbols": ["<mark>"],
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in TEXTS for line in text.splitlines()),
        model_writer=content,
        **(defaults | options),
    )
    return content.getvalue()


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    """A model as SentencePiece runs it, and as imported."""
    content = model_content(**VARIANTS[request.param])
    return sentencepiece.SentencePieceProcessor(model_proto=content), from_model_content(content, "model")


@settings(deadline=None, max_examples=400)
@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_any_text_has_the_ids_that_sentencepiece_gives(
    both: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str
) -> None:
    theirs, ours = both
    assume(not any(name in text for name in (*SPECIAL, "<0x")))  # where the ids differ on purpose
    assert ours.encode(text) == theirs.encode(text)


def test_finnish_english_and_code_have_the_ids_that_sentencepiece_gives(
    both: tuple[sentencepiece.SentencePieceProcessor, Tokenizer],
) -> None:
    theirs, ours = both
    for text in TEXTS:
        pieces = [text]
        for token in SPECIAL:
            pieces = [part for piece in pieces for part in piece.split(token)]
        for piece in pieces:
            assert ours.encode(piece) == theirs.encode(piece)


def test_roles_and_control_pieces_are_kept(both: tuple[sentencepiece.SentencePieceProcessor, Tokenizer]) -> None:
    theirs, ours = both
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, None)
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.token_id("<mark>") == theirs.piece_to_id("<mark>")


def test_a_control_piece_that_is_spelt_out_is_one_id() -> None:
    content = model_content(**VARIANTS["plain"])
    ours, theirs = (
        from_model_content(content, "model"),
        sentencepiece.SentencePieceProcessor(model_proto=content),
    )
    assert ours.encode("hei</s>")[-1] == 2
    assert theirs.encode("hei</s>")[-1] != 2


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = imported("prefix")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_loads_the_imported_folder_to_the_same_ids(tmp_path: Path) -> None:
    for variant in VARIANTS:
        ours = imported(variant)
        ours.save(tmp_path / variant)
        theirs = AutoTokenizer.from_pretrained(tmp_path / variant)
        for text in [*TEXTS, "  kaksi  väliä\n", "<mark>日😀", "".join(FRAGMENTS), ""]:
            assert theirs(text)["input_ids"] == ours.encode(text)
        assert (theirs.eos_token_id, theirs.bos_token_id) == (2, 1)
        assert len(theirs) == ours.vocab_size


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        pytest.param({"model_type": "unigram"}, "is a UNIGRAM model", id="unigram"),
        pytest.param({"byte_fallback": False}, "has no byte fallback .* 0 of 256", id="no byte fallback"),
        pytest.param({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name=identity", id="normalisation"),
        pytest.param({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix=True", id="suffix"),
        pytest.param({**VARIANTS["plain"], "eos_id": -1}, "no piece for the end of a document", id="no end"),
        pytest.param(
            {"user_defined_symbols": ["▁▁"]}, "trims spaces and has user-defined pieces with spaces", id="spaces"
        ),
    ],
)
def test_a_model_that_has_no_counterpart_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        from_model_content(model_content(**options), "model")


def test_pieces_of_one_score_are_refused() -> None:
    with pytest.raises(DataError, match=r"gives 2 pieces the same score"):
        from_model_content(edited(piece="ka", score=-7), "model")


def test_unused_pieces_are_refused() -> None:
    with pytest.raises(DataError, match="marks 1 pieces as unused"):
        from_model_content(edited(type=5), "model")


def test_a_piece_of_a_character_that_has_none_is_refused() -> None:
    with pytest.raises(DataError, match="has the piece 'ä☃' but none for its character '☃'"):
        from_model_content(edited(piece="ä☃"), "model")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.model cannot be read"):
        import_sentencepiece(tmp_path / "nowhere.model")
    whole = model_content()
    for name, content in {"text": b"<unk>\t0\n", "cut": whole[: len(whole) // 2 - 3], "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a SentencePiece model .*give the .model file"):
            import_sentencepiece(tmp_path / name)


def test_an_import_that_gives_other_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sentencepiece_import._merges
    monkeypatch.setattr(sentencepiece_import, "_merges", lambda pieces: reversed(list(right(pieces))))
    with pytest.raises(DataError, match=r"cannot be imported: .* gives the ids \[.*\] in SentencePiece, \[.*\] here"):
        from_model_content(model_content(), "model")


def test_runs_are_divided_as_by_sentencepiece() -> None:
    """In a run, a piece can begin anywhere, and be divided in many ways."""
    texts = ["=" * n + "\n" + "-=" * n + " " * n + "ab" * n for n in range(1, 60)]
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=content, model_type="bpe", vocab_size=300, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())
    ours = from_model_content(content.getvalue(), "model")
    for length in range(200):
        for unit in ("=", " ", "-=", "ab", "ba", "aba", "==-"):
            assert ours.encode(unit * length) == theirs.encode(unit * length)


# training


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_sentencepiece(TEXTS, 1200)


def test_trained_model_has_the_special_tokens_first_and_the_size_asked_for(trained: Tokenizer) -> None:
    assert [trained.token_id(token) for token in SPECIAL_TOKENS] == list(range(24))
    assert (trained.unk_id, trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 2, 3)
    assert trained.vocab_size == 1200


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_any_text_survives_the_trained_model(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_training_twice_gives_the_same_model(trained: Tokenizer) -> None:
    assert train_sentencepiece(iter(TEXTS), 1200).fingerprint == trained.fingerprint


def test_sizes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=280 .*at least 281"):
        train_sentencepiece(TEXTS, 280)
    with pytest.raises(DataError, match="cannot make vocab_size=9000"):
        train_sentencepiece(["Hei maailma"], 9000)


# support


@cache
def imported(variant: str) -> Tokenizer:
    """The imported model of a variant, made once."""
    return from_model_content(model_content(**VARIANTS[variant]), variant)


def edited(**fields: Any) -> bytes:
    """A model file whose last piece was changed after training."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(model_content(**VARIANTS["plain"]))
    for field, value in fields.items():
        setattr(model.pieces[-1], field, value)
    return bytes(model.SerializeToString())
