"""Encoding, decoding, identity and the refusals of a tokenizer."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.errors import DataError
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer

MERGES = [["a", "b"], ["ab", "c"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved byte tokenizer with two merges."""
    byte_tokenizer().save(tmp_path)
    edit(tmp_path / "tokenizer.json", add_merges)
    return tmp_path


def add_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(merge) for merge in MERGES]
    content["model"]["vocab"].update({"".join(merge): 280 + number for number, merge in enumerate(MERGES)})


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file in place; its layout changes too."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def set_key(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


# encoding and decoding


def test_no_token_is_added_at_either_end(folder: Path) -> None:
    assert Tokenizer.load(folder).encode("abc") == [281]
    assert Tokenizer.load(folder).encode("") == []


def test_a_batch_is_its_texts_in_order(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    texts = ["abc", "", "Hyvää päivää", "c" * 100]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_a_special_token_spelt_out_is_one_id(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("".join(SPECIAL_TOKENS)) == list(range(24))
    assert tokenizer.encode("<|user|>ab") == [4, 280]


def test_decoding_can_leave_special_tokens_out(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode([1, 281, 2]) == "<s>abc</s>"
    assert tokenizer.decode([1, 281, 2], skip_special=True) == "abc"


def test_half_a_character_decodes_to_the_replacement_character(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("ä")[:1]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 282])
def test_decoding_refuses_an_id_outside_the_vocabulary(folder: Path, token: int) -> None:
    with pytest.raises(DataError, match=f"token id {token} is outside .* 282 ids"):
        Tokenizer.load(folder).decode([281, token])


def test_half_a_surrogate_pair_is_refused_with_its_place(folder: Path) -> None:
    with pytest.raises(DataError, match=r"text 1 of 2 .*U\+D83D.* character 3"):
        Tokenizer.load(folder).encode_batch(["kissa", "hei\ud83d"])
    with pytest.raises(DataError, match=r"text 0 of 1 .*U\+DC00.* character 0"):
        Tokenizer.load(folder).encode("\udc00")


def test_cutting_and_padding_in_the_file_are_switched_off(folder: Path) -> None:
    limit = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", set_key("truncation", limit))
    padding: dict[str, Any] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>"}
    edit(folder / "tokenizer.json", set_key("padding", padding))
    assert len(Tokenizer.load(folder).encode("kissa")) == 5


# identity


def test_size_counts_up_to_the_highest_id(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update({"unused": 999}))
    assert Tokenizer.load(folder).vocab_size == 1000


def test_fingerprint_ignores_layout_key_order_and_form_of_merges(folder: Path) -> None:
    fingerprint = Tokenizer.load(folder).fingerprint
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = MERGES
    path.write_text(json.dumps(dict(reversed(content.items())), ensure_ascii=True, indent=7), encoding="utf-8")
    assert Tokenizer.load(folder).fingerprint == fingerprint


def test_fingerprint_changes_with_the_content(folder: Path) -> None:
    before = Tokenizer.load(folder).fingerprint
    edit(folder / "tokenizer.json", lambda content: content["model"]["merges"].pop())
    assert Tokenizer.load(folder).fingerprint != before


def test_fingerprint_of_the_byte_tokenizer_stays() -> None:
    expected = "420dde1aa56bc099aab8b8485d9847a23347989d2e05d135048665fac56da19e"
    assert byte_tokenizer().fingerprint == expected


def test_it_travels_to_another_process(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("abc ä") == tokenizer.encode("abc ä")
    assert copy.fingerprint == tokenizer.fingerprint


# roles


def test_roles_may_come_from_the_special_tokens_map_alone(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder).eos_id == 2


def test_roles_may_be_objects(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", set_key("eos_token", {"content": "<pad>", "lstrip": False}))
    assert Tokenizer.load(folder).eos_id == 3


def test_a_role_that_is_not_filled_is_none(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", set_key("unk_token", None))
    assert Tokenizer.load(folder).unk_id is None


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", set_key("eos_token", None))
    with pytest.raises(DataError, match=r"names no eos_token.*tokenizer_config\.json"):
        Tokenizer.load(folder)


def test_a_role_outside_the_vocabulary_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", set_key("pad_token", "<blank>"))
    with pytest.raises(DataError, match="'<blank>' as its pad_token"):
        Tokenizer.load(folder)


# damage


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist: .*poro tokenizer train"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_folder_without_a_definition_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{name} is not JSON"):
        Tokenizer.load(folder)


def test_a_file_that_is_not_text_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(folder)


def test_a_file_that_is_no_object_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds a list"):
        Tokenizer.load(folder)


def test_a_definition_of_no_known_model_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer.json", set_key("model", {"type": "Abacus"}))
    with pytest.raises(DataError, match=r"tokenizer\.json that cannot be read"):
        Tokenizer.load(folder)
