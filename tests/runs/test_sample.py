"""`locallearn sample`, and texts as users bring them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import locallearn
from helpers.commands import one_sentence
from helpers.commands import run as command
from locallearn.data.spelling import BytePairs, Characters
from locallearn.data.text import Text

WORDS = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. "
CONTEXT = 8


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small language model whose blocks have heads of their own."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "text.txt").write_text(WORDS * 40)
    settings = {"model": "gpt", "model.width": 16, "model.heads": 2, "model.layers": 2, "data.context": CONTEXT}
    settings |= {"data": "text", "data.file": str(folder / "text.txt"), "data.steps": 20, "epochs": 2, "threads": 1}
    settings |= {"strategy": "dgl", "auxiliary": "linear", "blocks": "max", "optim.lr": 1e-2, "batch_size": 8}
    return locallearn.train(**settings, out=str(folder / "runs"), quiet=True).run_dir


def sampled(run: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    code, out, err = command("sample", str(run), *words, capsys=capsys)
    assert code == 0, err
    return out.removesuffix("\n")


@pytest.mark.slow
def test_the_likeliest_text_is_that_of_the_plain_model(written, capsys):
    """Token by token by hand, in contexts that grow to the window and then move."""
    names = json.loads((written / "manifest.json").read_text())["classes"]
    model, text = locallearn.load(written), "fox "
    while len(text) < 24:
        read = torch.tensor([[names.index(c) for c in text[-CONTEXT:]]])
        with torch.no_grad():
            text += names[int(model(read)[0, -1].argmax())]
    assert sampled(written, "--prompt", "fox ", "top_k=1", "tokens=20", capsys=capsys) == text


@pytest.mark.slow
def test_the_same_call_writes_the_same_text(written, capsys):
    one, again, other = (
        sampled(written, "--prompt", "dog", "tokens=60", f"seed={seed}", capsys=capsys) for seed in (3, 3, 4)
    )
    assert one == again != other
    assert sampled(written, "tokens=5", capsys=capsys)[0] == " ", "the text has no new line: its first character"
    assert len(one) == 63
    assert set(one) <= set(WORDS)
    cold = sampled(written, "--prompt", "dog", "tokens=60", "temperature=0.001", capsys=capsys)
    assert cold == sampled(written, "--prompt", "dog", "tokens=60", "top_k=1", capsys=capsys)
    likely = sampled(written, "--prompt", "dog", "tokens=200", "temperature=1e6", "top_k=2", capsys=capsys)
    assert len(set(likely)) > 2


@pytest.mark.slow
def test_an_inner_head_knows_pairs_alone(written, capsys):
    """Block 0 is the embedding: what follows a character depends on it (and its place) alone."""
    low, high = (
        sampled(written, "--prompt", "the quick", "top_k=1", "tokens=30", f"block={k}", capsys=capsys) for k in (0, 2)
    )
    assert low != high
    assert high == sampled(written, "--prompt", "the quick", "top_k=1", "tokens=30", capsys=capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "fox é"], "the character 'é' is not in the text that was trained on, which has ' ,.abcdef"),
        (["--prompt", ""], "the prompt is empty"),
        (["block=3"], "block=3: no head of this run answers there; choose of [0, 1, 2]"),
        (["tokens=0"], "tokens=0: must be a whole number of at least 1"),
        (["temperature=0"], "temperature=0: must be a number above 0"),
        (["model=gpt"], "not 'model=gpt'"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(words, said, written, capsys):
    code, out, err = command("sample", str(written), *words, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in one_sentence(err)


@pytest.mark.slow
def test_only_a_language_model_that_has_trained_writes(tmp_path, capsys):
    settings = {
        "data": "digits",
        "model": "mlp",
        "model.width": 4,
        "strategy": "backprop",
        "max_steps": 1,
        "threads": 1,
    }
    run = locallearn.train(**settings, epochs=1, quiet=True, out=str(tmp_path)).run_dir
    code, _, err = command("sample", str(run), capsys=capsys)
    assert code == 2
    assert "was trained for a class for each sample: give another run" in one_sentence(err)
    code, _, err = command("sample", str(tmp_path / "nowhere"), capsys=capsys)
    assert code == 2
    assert "there is no run folder" in one_sentence(err)


# Texts

LONG = WORDS * 20
BROKEN = {
    "is empty": b"",
    "repeats one character": b"aaaa" * 100,
    "it is not a text in UTF-8": bytes(range(256)) * 9,
    "the validation part of": b"ab" * 40,
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_text_that_teaches_nothing_is_refused(said, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(BROKEN[said])
    words = ["model=gpt", "data=text", f"data.file={tmp_path / 'a.txt'}", "strategy=backprop", "blocks=1"]
    code, _, err = command(*words, capsys=capsys)
    assert code == 2
    assert said in one_sentence(err)


@pytest.mark.slow
def test_a_validation_part_is_the_end_of_the_training_part(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(LONG)
    edge, words = int(0.9 * len(LONG)), ["model=gpt", "model.width=8", "data=text", f"data.file={tmp_path / 'a.txt'}"]
    data = Text(file=str(tmp_path / "a.txt"), context=8, validation=0.2).load(0, torch.device("cpu"))
    held_out = round(0.2 * edge)
    assert data.spelling.decode(data.validation.store.tokens.tolist()) == LONG[edge - held_out : edge]
    assert data.spelling.decode(data.train.store.tokens.tolist()) == LONG[: edge - held_out]
    for share in ("0", "0.2"):
        more = [
            "data.context=8",
            f"data.validation={share}",
            "strategy=backprop",
            "blocks=1",
            "max_steps=1",
            "epochs=1",
        ]
        assert command(*words, *more, "threads=1", f"out={tmp_path / share}", capsys=capsys)[0] == 0


def test_characters_that_only_the_test_part_has_are_known(tmp_path):
    (tmp_path / "a.txt").write_text(LONG[:900] + "XYZ" * 33)
    data = Text(file=str(tmp_path / "a.txt"), context=8).load(0, torch.device("cpu"))
    assert {"X", "Y", "Z"} <= set(data.classes)
    assert not any(data.spelling.decode(x.tolist()).isupper() for x in next(data.batches(0, 4))[0])
    assert all(int(y.max()) < data.vocabulary for _, y in data.evaluation(data.test, 4))


def test_spellings_give_the_text_back(tmp_path):
    letters = Characters(WORDS)
    assert letters.decode(letters.encode("the fox").tolist()) == "the fox"
    pytest.importorskip("tokenizers")
    pairs = BytePairs("bpe", LONG, 300)
    text = "The quick é\n fox 你"
    assert pairs.decode(pairs.encode(text).tolist()) == text, "bytes spell everything"
    assert 256 < len(pairs.names) <= 300
    assert len(pairs.encode(WORDS)) < len(WORDS)
    pairs._library.save(str(tmp_path / "own.json"))
    assert BytePairs(tmp_path / "own.json", "", 0).encode(WORDS).tolist() == pairs.encode(WORDS).tolist()


def test_byte_pairs_count_in_bits_per_character(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text(LONG * 3)
    data = Text(file=str(tmp_path / "a.txt"), tokenizer="bpe", vocabulary=300, context=8).load(0, torch.device("cpu"))
    test = (LONG * 3)[int(0.9 * len(LONG * 3)) :]
    asked = [int(t) for _, y in data.evaluation(data.test, 4) for t in y.flatten() if t >= 0]
    first = int(data.test.store.tokens[0])
    assert data.spelling.decode([first, *asked]) == test
    numbers = data.task.numbers(1.0, None, 1)
    assert numbers["bits_per_character"] == pytest.approx((1 + len(asked)) / len(test) / torch.tensor(2.0).log().item())


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text(LONG)
    code, _, err = command(
        "model=gpt", "data=text", f"data.file={tmp_path / 'a.txt'}", "data.tokenizer=bpe", capsys=capsys
    )
    assert code == 2
    assert "pip install 'locallearn[tokens]'" in one_sentence(err)
