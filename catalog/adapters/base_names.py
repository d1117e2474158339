"""Names of base models as tools write them → the names that a table of bases may hold.

Hub caches, ModelScope caches, Kaggle's paths, addresses, revisions and suffixes of quantised copies are
taken apart here; which model a name means is for `catalog.adapters` to say. No name is invented: every result
is part of the text, except for the dot that ModelScope writes as three underscores.

Sources of the forms: huggingface_hub's `repo_folder_name` (models--OWNER--NAME/snapshots/COMMIT),
modelscope's `snapshot_download` (hub/[models/]OWNER/NAME), kagglehub (OWNER/MODEL/FRAMEWORK/VARIATION/…).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import unquote

_NO_NAMES = frozenset(
    {
        "",
        "-",
        "?",
        "[]",
        "{}",
        "false",
        "n/a",
        "na",
        "nan",
        "nil",
        "none",
        "null",
        "undefined",
        "unknown",
        "~",
    }
)
_QUOTES = " \t\r\n'\"`"
_HUB = re.compile(
    r"(?:(?:git\+)?https?://(?:[^/@\s]*@)?|(?:ssh://)?git@)?(?:www\.)?"
    r"(?:huggingface\.co|hf\.co|hf-mirror\.com)[/:](?:api/)?(?:models/)?"
    r"|hf://(?:models/)?",
    re.IGNORECASE,
)
_MODELSCOPE = re.compile(r"(?:https?://)?(?:www\.)?modelscope\.(?:cn|ai|com)/models/", re.IGNORECASE)
_KAGGLE = re.compile(r"(?:https?://)?(?:www\.)?kaggle\.com/models/", re.IGNORECASE)
_NO_MODELS = ("datasets/", "spaces/", "papers/", "collections/", "docs/", "blog/")
# What follows the name in the address of a page or a file.
_PAGE = re.compile(
    r"/(?:tree|blob|resolve|raw|commits?|discussions|edit|summary|files|model_files?)(?:/.*)?\Z"
)
_PAGE_OF = re.compile(r"([A-Za-z0-9_][\w.-]*/[\w.-]+)/(?:tree|blob|resolve)/.+\Z")
_REVISED = re.compile(r"([A-Za-z0-9_][\w.-]*/[\w.-]+)[@:]([\w./-]+)\Z")
_CACHED = re.compile(r"models--(?:([^/]+?)--)?([^/]+)\Z")
_SNAPSHOT = re.compile(r"/snapshots/[0-9a-f]{7,64}\Z|/[0-9a-f]{40}\Z")
_WORD = re.compile(r"[^\W\d_]+|\d+[^\W\d_]*")
_MARKED = re.compile(r"(?<![^\W\d_])v(?=\d)")
_P_FOR_POINT = re.compile(r"(?<=\d)p(?=\d)")
_FRAMEWORKS = frozenset(
    {"flax", "gemmacpp", "gguf", "jax", "keras", "other", "pytorch", "tensorflow2", "transformers"}
)
# Folders inside of a downloaded model that do not identify the model.
_INSIDE = frozenset({"hf", "main", "original", "pytorch", "safetensors", "transformers"})
# No two of these match one text in two ways: names are untrusted text, and backtracking would be exponential.
_FORMATS = (
    r"unsloth|bnb|awq|gptq|gguf|ggml|exl[23]|hqq|eetq|aqlm|marlin|mlx|dwq|nf4|fp4|nvfp4|mxfp[48]"
    r"|fp8(?:-(?:dynamic|block|kv))?|int[2348]|w\d+a\d+|quantized\.w\d+a\d+|[2-8][-_]?bits?|\d+g"
    r"|[\d.]+bpw|i?q[1-8](?:_(?:[01k](?:_(?:xl|[sml]))?|x?xs|[sm]|nl))?"
)
_QUANTISED = re.compile(rf"(?:[-_.](?:{_FORMATS}))+\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NameReading:
    """A name that a text may mean, and how it was derived.

    `whole` means that the text names a repository of a hub, not a local folder.
    """

    name: str
    evidence: str
    whole: bool = False


def names_nothing(text: str | None) -> bool:
    """Whether a text does not name a base model: it is empty, or a word such as None or null."""
    return text is None or text.strip(_QUOTES).casefold() in _NO_NAMES


def plain_name(text: str) -> tuple[str, str]:
    """The text without quotes, the address of a hub, a page, a revision or `.git`, and the part removed.

    The part removed is reported if it is a revision, else empty. Kaggle's addresses become the path below its
    folder of models. An address that is not a model's gives an empty name.
    """
    name = text.strip(_QUOTES)
    for address, before in ((_HUB, ""), (_MODELSCOPE, ""), (_KAGGLE, "/kagglehub/models/")):
        match = address.match(name)
        if match is not None:
            return _from_address(name[match.end() :], before)
    name = _PAGE_OF.sub(r"\1", name.rstrip("/") or name)
    name = name.removesuffix(".git") if "/" in name else name
    revised = _REVISED.match(name)
    if revised is None:
        return name, ""
    return revised[1], f"revision {revised[2]} left out"


def _from_address(path: str, before: str) -> tuple[str, str]:
    path = unquote(re.split(r"[?#]", path, maxsplit=1)[0]).strip("/")
    if path.startswith(_NO_MODELS):
        return "", "an address of no model"
    name, note = plain_name(_PAGE.sub("", path)) if path else ("", "")
    if before:
        return f"{before}{name}", note
    return "/".join(name.split("/")[:2]), note


def split_quantised(name: str) -> tuple[str, str]:
    """A name without the suffix of a quantised copy, and this suffix, empty if there is none."""
    match = _QUANTISED.search(name)
    if match is None or match.start() == 0 or name[match.start() - 1] == "/":
        return name, ""
    return name[: match.start()], match.group()


def words(name: str) -> tuple[str, ...]:
    """The letters and numbers of a name in lower case: the same for every separator.

    Llama-3.1-8B, Llama3.1-8b, llama_3_1_8b and llama-v3p1-8b are all (llama, 3, 1, 8b). The v of a version
    goes, and a point counts as a gap.
    """
    text = _P_FOR_POINT.sub(".", name.casefold())
    return tuple(_WORD.findall(_MARKED.sub(" ", text)))


def decode_name(name: str) -> str:
    """A name with the points that ModelScope writes as three underscores."""
    return name.replace("___", ".")


def readings_of_path(path: str) -> Iterator[NameReading]:
    """The names that a path may mean, the most certain first; each is a part of the path.

    A user's folder inside that of a known model (a checkpoint, merged weights) is read as itself.
    """
    path = _SNAPSHOT.sub("", path.replace("\\", "/").rstrip("/"))
    parts = [decode_name(part) for part in path.split("/") if part not in ("", ".")]
    yield from _of_hub_cache(parts)
    yield from _of_kaggle(parts)
    yield from _of_modelscope(parts)
    last = len(parts)
    while last and parts[last - 1].casefold() in _INSIDE:
        last -= 1
    # A colon separates a tag, as in Ollama's llama3.1:8b, which is the Instruct model.
    if last and ":" not in parts[last - 1]:
        name = parts[last - 1].removesuffix(".gguf")
        where = "ends in" if last == len(parts) else "has"
        yield NameReading(name, f"local path {where} {name}")
        if last > 1 and name[:1].isdigit():
            yield NameReading(f"{parts[last - 2]}-{name}", f"local path {where} {parts[last - 2]}/{name}")


def _of_hub_cache(parts: list[str]) -> Iterator[NameReading]:
    """models--OWNER--NAME, whole or at a snapshot; a folder inside it may contain another model."""
    for at, part in enumerate(parts):
        inside = parts[at + 1 :]
        if (cached := _CACHED.match(part)) and (
            not inside or (inside[0] == "snapshots" and len(inside) <= 2)
        ):
            name = f"{cached[1]}/{cached[2]}" if cached[1] else cached[2]
            yield NameReading(name, f"local path ends in {name}", whole=True)


def _of_modelscope(parts: list[str]) -> Iterator[NameReading]:
    for at, part in enumerate(parts):
        if part.casefold() == "modelscope":
            below = [folder for folder in parts[at + 1 :] if folder not in ("hub", "models")]
            if len(below) >= 2:
                name = "/".join(below[:2])
                yield NameReading(name, f"path of a ModelScope cache, {name}", whole=True)
            return


def _of_kaggle(parts: list[str]) -> Iterator[NameReading]:
    """MODEL/FRAMEWORK/VARIATION: the variation gives the size, alone or after the name of the model."""
    if not {"kaggle", "kagglehub"} & {part.casefold() for part in parts}:
        return
    for at, (model, framework) in enumerate(pairwise(parts)):
        if framework.casefold() in _FRAMEWORKS:
            variation = parts[at + 2] if at + 2 < len(parts) else ""
            note = f"Kaggle's path of {model}"
            yield NameReading(f"{model}-{variation}", f"{note}, {variation}")
            # Kaggle kept the word that Meta used for Llama 2.
            yield NameReading(f"{model}-{variation}".replace("-chat", "-instruct"), f"{note}, {variation}")
            yield NameReading(variation, f"{note}, {variation}")
            if not variation.strip("0123456789") or variation.casefold() == "default":
                yield NameReading(model, note)
            return
