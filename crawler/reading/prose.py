"""The readable text of a model card: Markdown without code, comments, tags, images, placeholders and
boilerplate.

`readable` is what search indexes and people read; `own_words` counts the words that were written for this
adapter and not by a tool. Every expression is bounded, so that time grows with the size of the text only.
"""

from __future__ import annotations

import re

_MAX_LINE = 4_000
_IMAGE = re.compile(r"!\[[^\]\n]{0,200}\](?:\([^()\n]{0,1000}\)|\[[^\]\n]{0,100}\])")
_LINK = re.compile(r"\[([^\[\]\n]{0,300})\]\([^()\n]{0,1000}\)")
_TAG = re.compile(r"</?[A-Za-z!][^<>]{0,2000}>")
_FENCE = re.compile(r"\s{0,12}(`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s{1,8}(\S.*)")
_PLACEHOLDER = re.compile(
    r"\[?\s?more information needed(?: for further recommendations)?\]?\.?", re.IGNORECASE
)
_EMPTY_ITEM = re.compile(r"\s{0,8}[-*+]?\s{0,4}\*\*[^*\n]{1,80}\*\*:?\s{0,8}\Z")
_EMPTY_LINK = re.compile(r"\[\s{0,8}\]\([^()\n]{0,1000}\)")
_RULE = re.compile(r"[\s|:=_*-]{1,4000}\Z")
_FIELD_LINE = re.compile(r"\s{0,8}[-*+|]?\s{0,4}[*`]{0,2}([A-Za-z][\w ()/-]{0,60}?)[*`]{0,2}\s{0,4}[:|]")
_VERSION_LINE = re.compile(r"\s{0,8}[-*+]\s{0,4}[A-Za-z][A-Za-z-]{1,30}:?\s{1,4}`?[0-9][^\s]{0,60}\s{0,8}\Z")
_WORD = re.compile(r"[^\W\d_]{2,}")

# Sentences of the unfilled template of PEFT and transformers.
_TEMPLATE_SENTENCES = (
    "users (both direct and downstream) should be made aware",
    "use the code below to get started with the model",
    "carbon emissions can be estimated using the",
    "this is the model card of a 🤗 transformers model that has been pushed",
    "this modelcard aims to be a base template for new models",
)
_TEMPLATE_TITLES = ("model card for model id", "model card for {{")
# The beginnings of sentences that training tools write about every model.
_TOOL_SENTENCES = (
    "this model is a fine-tuned version of",
    "this model was trained from scratch on",
    "this adapter was trained on an unknown dataset",
    "it achieves the following results on the evaluation set",
    "it has been trained using",
    "this model was trained with",
    "this peft model was trained",
    "the following hyperparameters were used during training",
    "the following `bitsandbytes` quantization config was used",
    "the following bitsandbytes quantization config was used",
    "see axolotl config",
    "axolotl version",
    "cite trl as",
    "cite dpo as",
    "cite grpo as",
    "cite orpo as",
    "cite kto as",
    "cite cpo as",
)
_TOOL_PARTS = (
    "| validation loss |",
    "| training loss |",
    "trained 2x faster with",
    "model was trained with unsloth",
    "model trained using autotrain",
)
# Fields of the template and of tools' lists: filled in or not, they do not describe an adapter.
_TEMPLATE_FIELDS = frozenset(
    {"developed by", "funded by", "shared by", "model type", "language(s) (nlp)", "license", "repository"}
    | {"finetuned from model", "paper", "demo", "training regime", "hardware type", "hours used"}
    | {"cloud provider", "compute region", "carbon emitted", "bibtex", "apa", "loss", "accuracy", "optimizer"}
)


def readable(body: str) -> str:
    """The prose, lists and tables of a card's body, one blank line between blocks; may be empty."""
    lines = [_clean(line[:_MAX_LINE]) for line in _without_code(_without_comments(body))]
    lines_left = _without_empty_headings([line for line in lines if line is not None])
    text = "\n".join(lines_left)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


def own_words(text: str) -> int:
    """How many words of readable text are neither a title, nor a tool's sentence, nor a field or row of a
    list.
    """
    return sum(len(_WORD.findall(line)) for line in text.split("\n") if not _is_boilerplate(line))


def has_template_marks(body: str) -> bool:
    """Whether the body is, or was, the template that PEFT and transformers write."""
    lowered = body.lower()
    return (
        any(title in lowered for title in _TEMPLATE_TITLES) or lowered.count("[more information needed]") >= 3
    )


def _without_comments(text: str) -> str:
    parts, at = [], 0
    while (start := text.find("<!--", at)) >= 0:
        parts.append(text[at:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(parts)
        at = end + 3
    return "".join(parts) + text[at:]


def _without_code(text: str) -> list[str]:
    """The lines outside of fenced code; an unclosed fence reaches to the end, as Markdown has it."""
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence and match is None:
            lines.append(line)
        elif not fence and match is not None:
            fence = match[1]
        elif match is not None and match[1].startswith(fence) and not line.strip(" \t\r`~"):
            fence = ""
    return lines


def _clean(line: str) -> str | None:
    """The line as text; None where only markup or a placeholder stood there, "" for a blank line."""
    if not line.strip():
        return ""
    if "-->" in line:
        return None  # the end of a comment over several lines
    line = _TAG.sub("", _IMAGE.sub("", line))
    line = _LINK.sub(r"\1", _EMPTY_LINK.sub("", line))
    lowered = line.lower()
    if any(sentence in lowered for sentence in (*_TEMPLATE_SENTENCES, *_TEMPLATE_TITLES)):
        return None
    line = _PLACEHOLDER.sub("", line).replace("[optional]", "").rstrip()
    if not line.strip() or _EMPTY_ITEM.match(line) or _RULE.match(line):
        # The rule of a table stays: without it the rows are no table.
        return line if "|" in line and "-" in line and _RULE.match(line) else None
    return line


def _without_empty_headings(lines: list[str]) -> list[str]:
    """The lines without headings under which nothing stands before a heading of the same or a higher rank."""
    lines_left: list[str] = []
    content_below = 0  # the lowest rank of heading that what was kept so far can stand under; 7 for text
    for line in reversed(lines):
        heading = _HEADING.match(line)
        if heading is None:
            content_below = 7 if line.strip() else content_below
            lines_left.append(line)
        elif content_below > len(heading[1]):
            lines_left.append(line)
            content_below = len(heading[1])
    return lines_left[::-1]


def _is_boilerplate(line: str) -> bool:
    lowered = line.strip().lower()
    if not lowered or _HEADING.match(line) or _VERSION_LINE.match(line):
        return True
    if lowered.startswith(_TOOL_SENTENCES) or any(part in lowered for part in _TOOL_PARTS):
        return True
    field = _FIELD_LINE.match(line)
    if field is None:
        return False
    name = field[1].strip().lower()
    return name in _TEMPLATE_FIELDS or ("_" in name and " " not in name) or _is_figures(line)


def _is_figures(line: str) -> bool:
    """Whether a list item or table row holds a setting: hardly a word in addition to its name."""
    return len(_WORD.findall(line.partition(":")[2] if ":" in line else line)) <= 3
