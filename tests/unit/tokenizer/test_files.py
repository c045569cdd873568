"""Writing a tokenizer folder: the portable form, and nothing half-written."""

import json
from pathlib import Path

import pytest

from megatron_poro.errors import DataError
from megatron_poro.tokenizer import files
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.tokenizer.tokenizer import Tokenizer

WRITTEN_BY_5X = {
    "backend": "tokenizers",
    "is_local": True,
    "local_files_only": False,
    "tokenizer_class": "TokenizersBackend",
    "eos_token": "</s>",
}


def test_what_only_transformers_5_understands_is_not_written() -> None:
    settings = files.portable_settings(WRITTEN_BY_5X)
    assert settings == {
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def test_a_class_that_old_releases_know_is_kept() -> None:
    assert files.portable_settings({"tokenizer_class": "BloomTokenizer"}) == {"tokenizer_class": "BloomTokenizer"}


def test_merges_become_strings() -> None:
    portable = files.portable_definition({"model": {"merges": [["a", "b"], ["ab", "c"]]}})
    assert portable == {"model": {"merges": ["a b", "ab c"]}}
    assert files.portable_definition(portable) == portable


def test_merges_of_pieces_with_spaces_stay_pairs() -> None:
    definition = {"model": {"merges": [["a", " b"]]}}
    assert files.portable_definition(definition) == definition


def test_saving_beside_other_files_leaves_them_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    byte_tokenizer().save(tmp_path)
    byte_tokenizer().save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def test_saving_a_loaded_tokenizer_keeps_it(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path / "first")
    Tokenizer.load(tmp_path / "first").save(tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_save_that_breaks_off_leaves_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.replace

    def full_disk(self: Path, target: Path) -> Path:
        if target.name == "tokenizer.json":
            raise OSError(28, "No space left on device")
        return write(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(DataError, match=r"cannot write a tokenizer into .*No space left on device"):
        byte_tokenizer().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer_config.json", "special_tokens_map.json"}
    with pytest.raises(DataError, match="was not written to the end"):
        Tokenizer.load(tmp_path)


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"cannot write a tokenizer into .*taken"):
        byte_tokenizer().save(tmp_path / "taken")


def test_the_written_definition_is_plain_json(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"
