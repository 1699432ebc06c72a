"""Text from every source, and the batches made of it."""

import json

import pytest
import torch

from eckart.lm import batches, read_text


def test_pydoc_is_the_same_text_at_every_call_and_is_cut_at_the_limit():
    text = read_text("pydoc")
    assert len(text) > 100_000
    assert text == read_text("pydoc")
    assert read_text("pydoc", limit=5000) == text[:5000]
    assert (
        text.index('The "assert" statement') < text.index('The "break" statement') < text.index('The "with" statement')
    )


def test_a_text_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two β\n", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "one\n\n two β\n"
    assert read_text(str(tmp_path / "a.txt"), limit=3) == "one"


def test_rows_of_jsonl_and_datasets_are_joined_by_blank_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": "one", "id": "a"}, {"text": "two", "id": "b"}, {"text": "three", "id": "c"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    for source in (tmp_path / "a.jsonl", tmp_path / "set"):
        assert read_text(source) == "one\n\ntwo\n\nthree"
        assert read_text(source, limit=6) == "one\n\nt"
    datasets.Dataset.from_list([{"body": "only", "n": 1}]).save_to_disk(tmp_path / "other")
    assert read_text(tmp_path / "other") == "only"


def test_what_holds_no_text_is_named_with_its_remedy(tmp_path):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(FileNotFoundError, match="there is nothing at nowhere; give 'pydoc'"):
        read_text("nowhere")
    with pytest.raises(ValueError, match="save_to_disk did not write"):
        read_text(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 3\)"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{oops\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_text(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('["x"]\n')
    with pytest.raises(ValueError, match="line 1 is not an object"):
        read_text(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"title": "x", "body": "y"}\n')
    with pytest.raises(ValueError, match="body, title"):
        read_text(tmp_path / "c.jsonl")
    rows = datasets.Dataset.from_list([{"text": "x"}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "sets")
    with pytest.raises(ValueError, match=r"several splits \(test, train\); give one: .*sets/test"):
        read_text(tmp_path / "sets")
    with pytest.raises(ValueError, match="limit: 0"):
        read_text("pydoc", limit=0)


def test_windows_cover_the_text_once_and_only_the_last_is_padded(word_tokenizer):
    text = "the cat sat on a mat and saw its own rank"
    made = batches(word_tokenizer, text, length=4, batch=2)
    assert [tuple(b["input_ids"].shape) for b in made] == [(2, 4), (1, 3)]
    real = torch.cat([b["input_ids"][b["attention_mask"] == 1] for b in made])
    assert real.tolist() == word_tokenizer(text)["input_ids"]
    padded = batches(word_tokenizer, text, length=4, batch=3)[0]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert padded["input_ids"].dtype == padded["attention_mask"].dtype == torch.int64


def test_stride_moves_the_windows_and_count_bounds_the_batches(word_tokenizer):
    (made,) = batches(word_tokenizer, "the cat sat on a mat", length=3, stride=1, batch=2, count=1)
    assert made["input_ids"].tolist() == [[1, 2, 3], [2, 3, 4]]
    assert len(batches(word_tokenizer, "the cat " * 100, length=4, count=3)) == 3


def test_the_marks_of_an_encoder_go_around_every_window():
    from transformers import BertTokenizerFast

    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "b", "c"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    ids = batches(tokenizer, "a b c a b", length=4, batch=3)[0]["input_ids"].tolist()
    assert ids == [[1, 5, 6, 2], [1, 7, 5, 2], [1, 6, 2, 3]]


def test_impossible_batches_are_refused(word_tokenizer):
    with pytest.raises(ValueError, match="3 characters make no tokens"):
        batches(word_tokenizer, " \n ", length=4)
    with pytest.raises(ValueError, match="length: 65 tokens, but the model takes at most 64"):
        batches(word_tokenizer, "cat", length=65)
    with pytest.raises(ValueError, match="length: 0 leaves no room"):
        batches(word_tokenizer, "cat", length=0)
    with pytest.raises(ValueError, match="stride: 0"):
        batches(word_tokenizer, "cat", length=4, stride=0)
    with pytest.raises(ValueError, match="the model has none"):
        batches(None, "cat")
