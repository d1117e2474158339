"""How cards are cut, which are embedded at all, and the encoder against the model computed by hand."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import CatalogError, LoradexError, UsageError
from catalog.index import find_encoder, record_encoder
from catalog.index.encoder import (
    CHUNK_PIECES,
    DEFAULT_MODEL,
    MOST_CHUNKS,
    OVERLAP_PIECES,
    PACKAGE,
    check_vectors,
    chunks,
    content_of,
    has_content,
    load_embedder,
)
from tests.localhub import FaultHub

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "house", "sky", "of", "."]
packaged = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="the package with the default model is not installed"
)


def words(count: int, start: int = 0) -> str:
    """So many different words, each of which counts as one word piece."""
    letters = "abcdefghij"
    return " ".join("".join(letters[int(digit)] for digit in str(n)) for n in range(start, start + count))


def test_a_short_text_is_one_chunk() -> None:
    text = "  Detects emotions\n\nin posts.  "
    assert chunks(text) == ("Detects emotions\n\nin posts.",)
    assert chunks("") == chunks(" \n\t ") == ()
    assert chunks(words(CHUNK_PIECES)) == (words(CHUNK_PIECES),)


def test_a_long_paragraph_is_cut_with_an_overlap() -> None:
    first, second = chunks(words(CHUNK_PIECES + 10))
    assert first == words(CHUNK_PIECES)
    assert second == words(OVERLAP_PIECES + 10, CHUNK_PIECES - OVERLAP_PIECES)


def test_chunks_end_with_paragraphs_and_then_do_not_overlap() -> None:
    paragraphs = [words(60), words(60, 60), words(60, 120), words(60, 180)]
    assert chunks("\n\n".join(paragraphs)) == ("\n\n".join(paragraphs[:3]), paragraphs[3])


def test_a_paragraph_that_ends_too_early_does_not_end_a_chunk() -> None:
    short, long = words(CHUNK_PIECES // 2), words(300, 1000)
    first, *_ = chunks(f"{short}\n\n{long}")
    assert first.split() == [*short.split(), *long.split()[: CHUNK_PIECES - CHUNK_PIECES // 2]]


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("abcdef", 1),
        ("abcdefg", 2),
        ("12", 1),
        ("123", 2),
        ("q_proj", 3),
        ("a.b", 3),
        ("\u60c5", 1),
        ("\u0301", 1),
    ],
)
def test_words_count_by_what_a_tokenizer_makes_of_them(word: str, pieces: int) -> None:
    assert len(chunks(" ".join([word] * CHUNK_PIECES))[0].split()) == CHUNK_PIECES // pieces


def test_the_number_and_the_size_of_chunks_are_bounded() -> None:
    assert len(chunks(words(100_000))) == MOST_CHUNKS
    assert max(map(len, chunks("x" * 1_000_000))) <= 6 * CHUNK_PIECES
    assert [len(chunk) for chunk in chunks("\u60c5" * 500)][:2] == [CHUNK_PIECES] * 2
    assert len(chunks("." * 100_000)) == MOST_CHUNKS


PROSE = st.lists(
    st.sampled_from(["word", "wörter", "情感", "\n\n", "\n \n", "- x", "a" * 90]), max_size=900
).map(" ".join)


@given(PROSE)
def test_chunks_are_pieces_of_the_text_in_order_that_leave_nothing_out(text: str) -> None:
    pieces = chunks(text)
    end = 0
    for piece in pieces:
        assert piece == piece.strip() != ""
        start = text.index(piece, max(0, end - 12 * OVERLAP_PIECES))
        assert text[end:start].strip() == ""
        end = max(end, start + len(piece))
    assert len(pieces) == MOST_CHUNKS or text[end:].strip() == ""


def test_the_name_of_a_text_is_pinned_with_how_it_is_cut() -> None:
    """Another cutting under the same names would leave old vectors in place: raise CHUNKING with it.

    The digest is that of `printf 'chunks 1\\na' | sha256sum`.
    """
    text = f"{words(120)}\n\n{words(120, 120)}\n\n{words(250, 240)}"
    cut = [(piece.split()[0], piece.split()[-1]) for piece in chunks(text)]
    assert cut == [("a", "bbj"), ("bca", "cdj"), ("cea", "efe"), ("eca", "eij")]
    assert content_of("a") == "aed39b4cc38aa02bcde7fb9d9ef327ebecafdf06028d6b5744f47f7e5ffd2502"


@pytest.mark.parametrize(
    ("quality", "text", "told"),
    [
        ("informative", "This one reads short posts and names moods.", True),
        ("informative", "Reads posts, names moods.", False),
        ("informative", "该模型识别短文中的情感。", True),
        ("informative", "1 2 3 4 5 6 7 8 9 10", False),
        ("informative", "", False),
        ("generated", "This model is a fine-tuned version of another one on an unknown dataset.", False),
        ("hyperparameters", "learning rate and batch size and seed and so on and on", False),
        ("template", "This one reads short posts and names moods.", False),
        ("absent", "This one reads short posts and names moods.", False),
    ],
)
def test_which_cards_have_content(quality: str, text: str, told: bool) -> None:
    assert has_content(quality, text) is told


class _Promises:
    name, size = "x", 2

    def encode(self, texts: Any) -> Any:
        raise AssertionError("vectors are checked without another call of the encoder")


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3)), np.ones((1, 2)), np.array([[1.0, 2.0], [np.inf, 0.0]]), np.ones(4)]
)
def test_vectors_that_break_the_promise_are_refused(bad: Any) -> None:
    with pytest.raises(CatalogError, match="The encoder x returned invalid vectors"):
        check_vectors(bad, 2, _Promises())


def test_vectors_are_little_endian_float32() -> None:
    result = check_vectors(np.array([[1.0, 2.0]], dtype=">f8"), 1, _Promises())
    assert result.tobytes() == bytes.fromhex("0000803f00000040")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model of two layers whose tokenizer knows eleven words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder") / "tiny-encoder"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def by_hand(folder: Path, text: str) -> Any:
    """The mean over the tokens of the last layer, with transformers alone, and length 1."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder).eval()
    names = {word: n for n, word in enumerate(WORDS)}
    ids = [2, *(names.get(word, 1) for word in re.findall(r"\w+|\.", text.lower())), 3]
    with torch.no_grad():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    mean = states.double().mean(dim=0).numpy()
    return mean / np.linalg.norm(mean)


@pytest.mark.slow
def test_vectors_are_those_of_the_model(model_folder: Path) -> None:
    encoder = load_embedder(str(model_folder))
    texts = ["A red house.", "blue sky of a house", "nobody knows"]
    vectors = encoder.encode(texts)
    assert (vectors.dtype, vectors.shape, encoder.size) == (np.float32, (3, 16), 16)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.allclose(vector, by_hand(model_folder, text), atol=1e-6)
    assert np.array_equal(encoder.encode(texts), vectors)
    assert np.array_equal(load_embedder(str(model_folder)).encode(texts), vectors)
    assert encoder.encode([]).shape == (0, 16)


@pytest.mark.slow
def test_a_query_needs_the_files_of_the_model_alone(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.files.cache.TICK", -1)
    folder = shutil.copytree(model_folder, tmp_path / "model")
    name = str(folder)
    assert find_encoder(tmp_path, name) is None
    full = load_embedder(name)
    record_encoder(tmp_path, name, full)
    query = find_encoder(tmp_path, name)
    assert query is not None
    assert (query.name, query.size) == (full.name, full.size)
    for text in ("A red house.", "", "nobody knows", "blue sky " * 30):
        assert np.allclose(query.encode_query(text), full.encode([text])[0], rtol=0, atol=1e-6)
    assert np.array_equal(query.encode(["red", "blue sky"]), full.encode(["red", "blue sky"]))
    # Files that changed are not what was compared.
    os.utime(folder / "tokenizer.json", (1000, 1000))
    assert find_encoder(tmp_path, name) is None
    pooling = {"word_embedding_dimension": 16, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    record_encoder(tmp_path, name, load_embedder(name))
    assert find_encoder(tmp_path, name) is None


@pytest.mark.slow
def test_the_name_holds_what_changes_vectors(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def changed(name: str, change: Any) -> str:
        folder = tmp_path / name / "tiny-encoder"
        shutil.copytree(model_folder, folder)
        change(folder)
        return load_embedder(str(folder)).name

    def weights(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["embeddings.word_embeddings.weight"][5, 0] += 0.001
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def swap(file: str, old: str, new: str) -> Any:
        def change(folder: Path) -> None:
            text = (folder / file).read_text()
            assert old in text
            (folder / file).write_text(text.replace(old, new))

        return change

    original = load_embedder(str(model_folder))
    assert re.fullmatch(r"tiny-encoder@[0-9a-f]{64}:16:unit", original.name)
    assert str(model_folder.parent) not in original.name
    original.encode(["red"])
    assert load_embedder(str(model_folder)).name == original.name
    names = {
        original.name,
        changed("weights", weights),
        changed("length", swap("sentence_bert_config.json", "16", "8")),
        changed("pooling", swap("1_Pooling/config.json", "mean_tokens", "cls_token")),
        changed("words", swap("tokenizer.json", '"red": 5', '"rot": 5')),
    }
    assert len(names) == 5
    assert changed("same", lambda folder: (folder / "README.md").write_text("x")) == original.name


@pytest.mark.slow
def test_loading_and_encoding_say_nothing(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_embedder(str(model_folder)).encode(["red house " * 20] * 40)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["", "nothing", "a/b/c", "../x y", "https://host/x"])
def test_a_name_of_nothing_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is not a text encoder"):
        load_embedder(name or "\x00")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "no_modules", "cut_weights", "pickle", "no_json"])
def test_a_folder_that_cannot_be_loaded_is_one_sentence(
    damage: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    if damage == "empty":
        folder.mkdir()
    else:
        shutil.copytree(model_folder, folder)
    if damage == "no_modules":
        (folder / "modules.json").unlink()
    elif damage == "cut_weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    elif damage == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif damage == "no_json":
        (folder / "config.json").write_text("{")
    with pytest.raises(LoradexError, match="cannot be loaded") as caught:
        load_embedder(str(folder))
    assert "\n" not in str(caught.value)
    assert "give the folder of a sentence-transformers model" in str(caught.value)


LOAD = """
import sys
from catalog.index.encoder import load_embedder
def show():
    encoder = load_embedder(sys.argv[1])
    print(encoder.name, encoder.encode(["a red house"])[0].tolist(), flush=True)
show()
sys.stdin.readline()
show()
"""


@pytest.mark.slow
def test_an_encoder_comes_from_the_hub_and_then_from_the_cache(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "hub" / "acme" / "tiny-encoder")
    command = [sys.executable, "-W", "error", "-c", LOAD, "acme/tiny-encoder"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    pipe = subprocess.PIPE
    with FaultHub(tmp_path / "hub") as hub:
        environment["HF_ENDPOINT"] = hub.url
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
    again, talk = process.communicate("the Hub is gone\n")
    assert (process.returncode, talk) == (0, "")
    assert again == first
    local = load_embedder(str(model_folder))
    assert first.split()[0] == f"acme/{local.name}"
    # Another process may compute with another number of threads.
    assert json.loads(first.partition(" ")[2]) == pytest.approx(
        local.encode(["a red house"])[0].tolist(), abs=1e-6
    )


@packaged
@pytest.mark.slow
def test_the_default_encoder_needs_no_network() -> None:
    encoder = load_embedder()
    assert encoder.name.startswith(f"{DEFAULT_MODEL}@")
    assert (encoder.size, encoder.name.rsplit(":", 2)[1]) == (384, "256")
    pairs = encoder.encode(["sentiment of tweets", "emotion in twitter posts", "SQL generation"])
    near, far = pairs[0] @ pairs[1], pairs[0] @ pairs[2]
    assert near > 0.6 > 0.3 > far
    assert logging.getLogger("transformers").level == logging.ERROR
