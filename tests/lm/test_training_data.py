"""Training data: what counts, what is cut, what is packed; no document sees another."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eckart.lm import training_data
from eckart.lm.packing import collate, keeps_apart, pack
from eckart.lm.rows import Row, read_rows
from families import families

WORDS = ["a", "b", "c", "d", "user", "assistant", "<end>"]
PLAIN = (
    "{% for turn in messages %}{{ turn['role'] + ' ' + turn['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")
    made.chat_template = PLAIN
    return made


def _counted(tokenizer, example):
    return tokenizer.convert_ids_to_tokens([label for label in example["labels"] if label != -100])


TALK = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "a")]
CHAT = Row("chat", [{"role": role, "content": content} for role, content in TALK], "here")


def test_of_a_conversation_the_assistant_s_turns_count_and_their_ends(tokenizer):
    data = training_data(tokenizer, [CHAT], held_out=0.0)
    assert _counted(tokenizer, data.train[0]) == ["b", "c", "<end>", "a", "<end>"]
    assert data.notes == []


def test_a_template_that_marks_what_is_generated_is_believed(tokenizer):
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn['role'] == 'assistant' %}{% generation %}{{ turn['content'] + ' ' }}"
        "{% endgeneration %}{% else %}{{ turn['content'] + ' ' }}{% endif %}{% endfor %}"
    )
    data = training_data(tokenizer, [CHAT], held_out=0.0)
    assert _counted(tokenizer, data.train[0]) == ["b", "c", "a"]


def test_where_the_template_does_not_tell_all_counts_and_it_is_said(tokenizer):
    tokenizer.chat_template = (
        "{{ messages | length }} {% for turn in messages %}{{ turn['content'] + ' ' }}{% endfor %}"
    )
    data = training_data(tokenizer, [CHAT], held_out=0.0)
    assert len(_counted(tokenizer, data.train[0])) == len(data.train[0]["labels"])
    assert "1 row (here) learned whole" in data.notes[0]


def test_a_chat_without_a_template_and_one_that_the_template_refuses_are_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"refuses here \(roles must alternate\)"):
        training_data(tokenizer, [CHAT])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="here is a conversation, but the model's tokenizer has no chat template"):
        training_data(tokenizer, [CHAT])


def test_of_a_pair_the_completion_counts(tokenizer):
    data = training_data(tokenizer, [Row("pair", ("a b", " c"), "here")], held_out=0.0)
    assert _counted(tokenizer, data.train[0]) == ["c", "<end>"]


def test_a_long_text_becomes_several_documents_and_a_long_pair_is_cut_and_said(tokenizer):
    data = training_data(tokenizer, [Row("text", "a b c d a", "one")], held_out=0.0, length=3)
    assert [len(each["input_ids"]) for each in data.train] == [3, 3]
    pairs = [Row("pair", ("a", "b c d a"), "two"), Row("pair", ("a b c d", "a"), "three")]
    data = training_data(tokenizer, pairs, held_out=0.0, length=3)
    assert len(data.train) == 1
    assert "2 rows (two, three) longer than 3 tokens" in data.notes[0]
    assert "1 row (three) left out" in data.notes[1]
    with pytest.raises(ValueError, match="nothing to learn is left"):
        training_data(tokenizer, pairs[1:], length=3)


def test_the_last_documents_are_held_out_and_never_trained(tokenizer):
    rows = [Row("text", " ".join(["a"] * (i + 2)), str(i)) for i in range(20)]
    data = training_data(tokenizer, rows, held_out=0.1)
    assert [len(each["input_ids"]) for each in data.held_out] == [21, 22]
    assert len(data.train) == 18
    assert training_data(tokenizer, rows[:3], held_out=rows[3:5]).notes == []


def test_packing_loses_nothing_and_asks_for_no_first_token():
    documents = [{"input_ids": [n] * n, "labels": [n] * n} for n in (5, 2, 7, 3, 3, 1)]
    packed = pack(documents, 8)
    assert sum(len(each["input_ids"]) for each in packed) == 21
    assert len(packed) == 3
    for each in packed:
        starts = [i for i, position in enumerate(each["position_ids"]) if position == 0]
        assert all(each["labels"][i] == -100 for i in starts)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_a_packed_document_is_read_as_if_it_stood_alone(family):
    model, _ = families()[family]()
    assert keeps_apart(model, 64)
    first, second = list(range(1, 6)), list(range(6, 10))
    (packed,) = pack([{"input_ids": ids, "labels": ids} for ids in (first, second)], 9)
    with torch.no_grad():
        together = model(**collate()([packed])).logits[0, 5:]
        alone = model(input_ids=torch.tensor([second])).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_model_that_looks_across_is_found_out():
    model, _ = families()["bert"]()
    assert not keeps_apart(model, 64)


def test_rows_of_a_dataset_and_of_a_text_file_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}]).save_to_disk(tmp_path / "set")
    assert [(row.kind, row.value) for row in read_rows(tmp_path / "set")] == [("pair", ("a", "b"))]
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert [row.value for row in read_rows(tmp_path / "a.txt")] == ["one\n\ntwo"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x\u2028y"}, ensure_ascii=False) + "\n")
    assert read_rows(tmp_path / "a.jsonl")[0].value == "x\u2028y"
