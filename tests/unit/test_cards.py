"""Model cards: front matter under guard, quality, text and training facts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crawler.reading.cards import CardQuality, parse_card
from crawler.reading.prose import own_words, readable
from tests.shared_data import data, index, shared


def card(front: str, body: str = "") -> bytes:
    return f"---\n{front}\n---\n{body}".encode()


def bomb(merge: bool = False) -> str:
    lines = ["a: &a {x: 1}" if merge else "a: &a [x, x, x, x, x, x, x, x, x]"]
    for above, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        again = ", ".join([f"*{above}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{again}]}}" if merge else f"{name}: &{name} [{again}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(card("- a\n- b"), "not_a_mapping", id="case-73-list"),
        pytest.param(card("just words"), "not_a_mapping", id="case-73-scalar"),
        pytest.param(card("a: [1"), "bad_yaml", id="case-73-bad-yaml"),
        pytest.param(card("a: *nothing"), "bad_yaml", id="case-73-unknown-alias"),
        pytest.param(card("? [a]\n: b"), "bad_yaml", id="case-73-key-is-a-list"),
        pytest.param(card("date: 2024-13-45"), "bad_yaml", id="case-73-impossible-date"),
        pytest.param(card("gated: !!bool x"), "bad_yaml", id="case-73-bool-of-a-word"),
        pytest.param(card("score: !!float ''"), "bad_yaml", id="case-73-float-of-nothing"),
        pytest.param(card("n: !!int ''"), "bad_yaml", id="case-73-int-of-nothing"),
        pytest.param(card("d: !!timestamp soon"), "bad_yaml", id="case-73-no-timestamp"),
        pytest.param(card("o: !!omap x"), "bad_yaml", id="case-73-no-omap"),
        pytest.param(card("a: !!python/object/apply:os.system [x]"), "unsafe_tag", id="case-73-python-tag"),
        pytest.param(card("a: !custom x"), "unsafe_tag", id="case-73-custom-tag"),
        pytest.param(card(bomb()), "alias_bomb", id="case-73-alias-bomb"),
        pytest.param(card(bomb(merge=True)), "alias_bomb", id="case-73-merge-bomb"),
        pytest.param(card("a: &a [*a]"), "alias_bomb", id="case-73-endless-alias"),
        pytest.param(card("a: &a {b: *a}"), "alias_bomb", id="case-73-endless-mapping"),
        pytest.param(card("a: " + "[" * 100_000), "too_large", id="case-73-deep"),
        pytest.param(card("- a\n" * 100_000), "too_large", id="case-73-many-nodes"),
        pytest.param(card("a: " + "x" * 1024 * 1024), "too_large", id="case-73-huge-front"),
        pytest.param(b"\xff\xfe# A card", "not_utf8", id="case-73-not-utf8"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "lfs_pointer",
            id="case-73-lfs-pointer",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_leaves_nothing(text: bytes, problem: str) -> None:
    read = parse_card(text)
    assert read.problems == (problem,)
    assert read.front == {}


def test_values_become_plain() -> None:
    read = parse_card(
        card(
            "date: 2024-01-02\nat: 2024-01-02 03:04:05\n1: one\nlanguage: no\nnan: .nan\n"
            "big: 99999999999999999999\n"
            "sixty: 1:30:00\nlong: "
            + "9" * 5000
            + '\nnul: "a\\0b"\nbytes: !!binary aGVsbG8=\nignore_metadata_errors: 1'
        )
    )
    front = json.loads(json.dumps(read.front, allow_nan=False))
    assert front["date"] == "2024-01-02"
    assert front["at"] == "2024-01-02T03:04:05"
    assert front["1"] == "one"
    assert (front["nan"], front["big"], front["sixty"]) == ("nan", "99999999999999999999", "1:30:00")
    assert front["long"] == "9" * 5000
    assert front["nul"] == "a\ufffdb"
    assert read.problems == ()


def test_fields_of_the_front_matter() -> None:
    read = parse_card(
        card(
            "base_model: [a/B, a/C]\ndatasets: imdb\ntags: x\nlanguage: [en, de]\nlibrary_name: peft\n"
            "pipeline_tag: text-generation\nlicense: Apache-2.0\nlicense_link: LICENSE"
        )
    )
    assert read.base_models == ("a/B", "a/C")
    assert read.datasets == ("imdb",)
    assert (read.license, read.license_in_words) == ("apache-2.0", "apache-2.0")


@pytest.mark.parametrize(
    ("front", "license_id", "stated"),
    [
        pytest.param("license: MIT", "mit", "mit", id="case-74-upper-case"),
        pytest.param("license: [mit, apache-2.0]", "mit", "mit", id="case-74-list"),
        pytest.param("license: []", None, None, id="case-74-empty-list"),
        pytest.param("license: 3", None, None, id="case-74-int"),
        pytest.param("license: {a: b}", None, None, id="case-74-mapping"),
        pytest.param("license: null", None, None, id="case-74-null"),
        pytest.param("a: b", None, None, id="case-74-none"),
        pytest.param("license: other\nlicense_name: Llama3.1", "other", "llama3.1", id="case-74-other-named"),
        pytest.param("license: other", "other", None, id="case-74-other-nameless"),
        pytest.param("licence: license", None, None, id="case-74-trl"),
        pytest.param("licence: mit", "mit", "mit", id="case-74-british"),
        pytest.param("license: mit\nlicence: license", "mit", "mit", id="case-74-both"),
    ],
)
def test_licence(front: str, license_id: str | None, stated: str | None) -> None:
    read = parse_card(card(front))
    assert (read.license, read.license_in_words, read.problems) == (license_id, stated, ())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no front matter", id="none"),
        pytest.param("---\nlicense: mit\nnever closed", id="unclosed"),
        pytest.param("a\n---\nlicense: mit\n---\n", id="a-rule-further-down"),
        pytest.param("----\nlicense: mit\n----\n", id="four-dashes"),
    ],
)
def test_what_is_no_front_matter_is_body(text: str) -> None:
    read = parse_card(text.encode())
    assert (read.front, read.license, read.problems) == ({}, None, ())


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_newlines_and_marks_before_the_front_matter(newline: str) -> None:
    text = newline.join(
        ["", "---", "license: mit", "---", "# T", "A long sentence that somebody wrote here."]
    )
    read = parse_card(b"\xef\xbb\xbf" + text.encode())
    assert read.license == "mit"
    assert read.text == "# T\nA long sentence that somebody wrote here."


def test_empty_front_matter() -> None:
    assert parse_card(b"---\n---\nx").front == {}


TEMPLATE = """# Model Card for Model ID

<!-- Provide a quick summary
of what the model is. -->

## Model Details

- **Developed by:** [More Information Needed]
- **Funded by [optional]:** [More Information Needed]

### Recommendations

Users (both direct and downstream) should be made aware of the risks. More information needed.

## How to Get Started with the Model

Use the code below to get started with the model.

[More Information Needed]

**BibTeX:**

[More Information Needed]
### Framework versions

- PEFT 0.21.2"""

OPTIMIZER = "Use adamw_torch with betas=(0.9,0.999) and optimizer_args=No additional optimizer arguments"
TRAINER = """<!-- This card was generated according to the information the Trainer had access to. -->

[<img src="https://example.org/badge.png" alt="Built with Axolotl" width="200"/>](https://example.org)
<details><summary>See axolotl config</summary>

axolotl version: `0.9.1`
```yaml
datasets:
- path: data/train.jsonl
micro_batch_size: 1
```

</details><br>

# out

This model is a fine-tuned version of [a/B](https://example.org) on the one and the two datasets.
It achieves the following results on the evaluation set:
- Loss: 3.3003

## Model description

More information needed

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 2e-05
- train_batch_size: 2
- total_train_batch_size: 16
- gradient_accumulation_steps: 4
- seed: 42
- optimizer: Use adamw_torch with betas=(0.9,0.999) and optimizer_args=No additional optimizer arguments
- lr_scheduler_type: cosine
- lr_scheduler_warmup_ratio: 0.1
- lr_scheduler_warmup_steps: 10
- num_epochs: 2.5

### Training results

| Training Loss | Epoch | Step | Validation Loss |
|:---:|:---:|:---:|:---:|
| No log | 0.1 | 1 | 4.9 |

### Framework versions

- PEFT 0.15.2
- Pytorch 2.8.0+cu128"""

TRL = """# Model Card for out

This model is a fine-tuned version of [a/B](https://huggingface.co/a/B).
It has been trained using [TRL](https://github.com/huggingface/trl).

## Quick start

```python
question = "If you had a time machine"
```

## Training procedure

This model was trained with SFT.

### Framework versions

- TRL: 0.27.1

## Citations

Cite TRL as:

```bibtex
@misc{x}
```"""

UNSLOTH = """# Uploaded  model

- **Developed by:** somebody
- **License:** apache-2.0
- **Finetuned from model :** unsloth/llama-3-8b-bnb-4bit

This llama model was trained 2x faster with [Unsloth](https://github.com/unslothai/unsloth) and TRL."""

OWN = "# SQL\n\nAnswers questions about sales tables with SQL queries; trained on ten thousand pairs."


@pytest.mark.parametrize(
    ("body", "quality", "tool"),
    [
        pytest.param("", "absent", None, id="empty"),
        pytest.param(" \n", "absent", None, id="blank"),
        pytest.param("# my-model", "absent", None, id="title-only"),
        pytest.param(TEMPLATE, "template", "PEFT", id="template"),
        pytest.param(
            TEMPLATE.replace("by:** [More Information Needed]", "by:** Somebody of Somewhere"),
            "template",
            "PEFT",
            id="name-filled-in",
        ),
        pytest.param(TEMPLATE + "\n\n" + OWN, "informative", "PEFT", id="template-filled-in"),
        pytest.param(TRAINER, "hyperparameters", "Axolotl", id="axolotl"),
        pytest.param(TRAINER.replace("xolotl", "xol"), "hyperparameters", "Trainer", id="trainer"),
        pytest.param(TRAINER + "\n\n" + OWN, "informative", "Axolotl", id="trainer-and-words"),
        pytest.param(TRL, "generated", "TRL", id="trl"),
        pytest.param(UNSLOTH, "generated", "Unsloth", id="unsloth"),
        pytest.param(
            "## Training procedure\n\n### Framework versions\n\n\n- PEFT 0.4.0\n",
            "generated",
            "PEFT",
            id="old-stub",
        ),
        pytest.param(OWN, "informative", None, id="words"),
    ],
)
def test_quality_and_tool(body: str, quality: str, tool: str | None) -> None:
    read = parse_card(body.encode())
    assert (read.quality.value, read.training.tool) == (quality, tool)


def test_training_facts_of_the_trainer() -> None:
    assert parse_card(TRAINER.encode()).training.as_json() == {
        "learning_rate": 2e-05,
        "schedule": "cosine",
        "batch_size": 1,
        "total_batch_size": 16,
        "gradient_accumulation": 4,
        "epochs": 2.5,
        "optimizer": OPTIMIZER,
        "warmup_steps": 10,
        "warmup_ratio": 0.1,
        "seed": 42,
        "datasets": ("data/train.jsonl", "one", "two"),
        "tool": "Axolotl",
        "versions": {"axolotl": "0.9.1", "peft": "0.15.2", "pytorch": "2.8.0+cu128"},
    }


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        pytest.param("| Learning Rate | 2e-4 |", {"learning_rate": 2e-4}, id="table"),
        pytest.param("- **Learning rate:** 1e-4", {"learning_rate": 1e-4}, id="bold"),
        pytest.param(
            "Trained for 40 steps of batch 8 with learning rate 0.001.",
            {"learning_rate": 0.001, "batch_size": 8, "steps": 40},
            id="prose",
        ),
        pytest.param("We trained it for 3 epochs", {"epochs": 3.0}, id="epochs"),
        pytest.param("- learning_rate: none", {}, id="no-number"),
        pytest.param("- seed: 9999999999999999999999", {}, id="too-large"),
        pytest.param("- learning_rate: 1e999", {}, id="infinite"),
        pytest.param("ten steps to a better life", {}, id="unrelated"),
    ],
)
def test_training_facts_of_a_line(line: str, facts: dict[str, Any]) -> None:
    assert parse_card(line.encode()).training.as_json() == facts


@pytest.mark.parametrize(
    ("tags", "tool"),
    [
        ("llama-factory", "LLaMA-Factory"),
        ("trl", "TRL"),
        ("unsloth", "Unsloth"),
        ("mlx", "mlx-lm"),
        ("generated_from_trainer", "Trainer"),
        ("x", None),
    ],
)
def test_tool_by_tag(tags: str, tool: str | None) -> None:
    assert parse_card(card(f"tags: [{tags}]", "# x")).training.tool == tool


def test_text_keeps_prose_and_tables_and_drops_the_rest() -> None:
    body = """# Title
![badge](https://example.org/a.svg) [![b](c)](d)
<b>Bold</b> words and a [link](https://example.org).
## Nothing here
[More Information Needed]
## Data
### Deeper
| a | b |
|---|---|
| 1 | 2 |
```python
print("gone")
```
<script>alert(1)</script>
## Empty at the end
"""
    assert readable(body) == (
        "# Title\nBold words and a link.\n## Data\n### Deeper\n| a | b |\n|---|---|\n| 1 | 2 |\nalert(1)"
    )


def test_own_words_are_nobody_elses() -> None:
    assert own_words(readable(TRAINER)) == 0
    assert own_words(readable(TEMPLATE)) == 0
    assert own_words(readable(OWN)) > 10


HUGE = [
    pytest.param(unit, id=f"case-75-{name}")
    for name, unit in [
        ("words", b"word "),
        ("brackets", b"["),
        ("tags", b"<a "),
        ("images", b"!["),
        ("links", b"[](x"),
        ("comments", b"<!--"),
        ("fences", b"```\n"),
        ("headings", b"# a\n"),
        ("rules", b"---\n"),
        ("pipes", b"| a "),
        ("newlines", b"\n"),
        ("fields", b"- learning_rate: 1\n"),
        ("digits", b"1"),
        ("trained", b"train 1 "),
    ]
]


@pytest.mark.parametrize("unit", HUGE)
def test_ten_megabytes_are_read_in_part(unit: bytes) -> None:
    read = parse_card(card("license: mit").rstrip() + b"\n" + unit * (10 * 1024 * 1024 // len(unit)))
    assert len(read.text) <= 200_000
    assert read.license == "mit"


def test_more_than_ten_megabytes_is_a_problem() -> None:
    read = parse_card(card("license: mit") + b"a " * (6 * 1024 * 1024))
    assert (read.problems, read.license) == (("too_large",), "mit")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | st.text(max_size=200).map(card))
@example(rb"\u0000")
@example(b"\x00")
def test_any_bytes_give_a_card_that_a_database_can_hold(text: bytes) -> None:
    read = parse_card(text)
    stored = json.dumps([dict(read.front), read.text, read.training.as_json(), read.license], allow_nan=False)
    # The escape of NUL, which PostgreSQL refuses; a card may spell it, and then its backslash is escaped.
    assert not re.search(r"(?<!\\)(\\\\)*\\u0000", stored)
    assert "\x00" not in read.text
    read.text.encode()


INDEX_QUALITY = {
    "none": "absent",
    "empty": "absent",
    "lfs-pointer (card not readable)": "absent",
    "template (HF default, unfilled)": "template",
    "template (partly filled)": "template",
    "auto (old PEFT stub)": "generated",
    "auto (TRL)": "generated",
    "auto (Unsloth)": "generated",
    "auto (axolotl)": "hyperparameters",
    "auto (LLaMA-Factory)": "hyperparameters",
    "auto (Trainer)": "hyperparameters",
    "real (hand-written)": "informative",
}


@shared
def test_the_wild_cards_are_what_the_index_says() -> None:
    differ = []
    for row in index("wild"):
        text = (data("wild") / row["dir"] / row["card"]).read_bytes() if row["card"] else b""
        read = parse_card(text)
        if read.quality.value != INDEX_QUALITY[row["card_quality"]]:
            differ.append((row["card_quality"], read.quality.value, own_words(read.text)))
        assert (read.base_models or (None,))[0] == row["card_base_model"], row["dir"]
        assert read.license == row["card_license"], row["dir"]
    # Two cards of a framework version and no word else: empty for the index, generated for us.
    assert differ == [("empty", "generated", 0)] * 2


@shared
def test_the_zoo_cards_are_what_the_index_says() -> None:
    rows = index("zoo")
    assert len(rows) == 39
    for row in rows:
        read = parse_card((data("zoo") / row["name"] / "README.md").read_bytes())
        assert read.quality is CardQuality(row["card"]), row["name"]
        assert read.training.learning_rate == (None if row["card"] == "template" else row["lr"]), row["name"]
