"""How a model reads prompts: several as one tree of tokens, or each individually.

A tree (`merging.evaluation`) gives every path the same as alone only if a token sees all its ancestors and
nothing else. A window of attention that is shorter than a path sees less of it alone, and a recurrent layer
carries the state of one branch into the next. The configuration's windows and recurrences decide first; then
some prompts are read both ways (`merging.evaluation`), once for each model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.files import replace_file

# Names under which configurations list the kind of each layer.
_KINDS = ("layer_types", "layers_block_type", "block_types", "_block_types")
_RECURRENT_KINDS = ("linear", "mamba", "conv", "recurrent", "hybrid", "ssm", "delta", "rnn")
# For models whose configuration does not list kinds.
_RECURRENT_MODELS = ("mamba", "rwkv", "xlstm")
# Length of a window in tokens, and the word for its layers among the kinds.
_WINDOWS = {
    "sliding_window": "sliding",
    "sliding_window_size": "sliding",
    "attention_window_size": "",
    "window_size": "",
    "attention_chunk_size": "chunk",
}
VERSION = 1


@dataclass(slots=True, eq=False)
class ReadingMode:
    """The knowledge about a model's trees.

    `window` is the longest path, in tokens, that every layer sees in full; `recurrent` says that states are
    carried along the order of the tokens. `right` is the longest path of a tree that gave what plain reading
    gives, `wrong` the shortest that did not. They are kept in the file `place`, if given.
    """

    window: float = math.inf
    recurrent: bool = False
    right: int = 0
    wrong: float = math.inf
    place: Path | None = None

    @property
    def tree_length(self) -> float:
        """The longest path that is read in a tree; 0 if none is.

        After a wrong tree, only lengths with a correct one are read in trees.
        """
        if self.recurrent:
            return 0
        return self.window if math.isinf(self.wrong) else min(self.window, self.right)

    def unsure(self, length: int) -> bool:
        """Whether it is not known yet if a tree with paths of this length is right."""
        return not self.recurrent and length <= self.window and self.right < length < self.wrong

    @property
    def depends_on_order(self) -> bool:
        """Whether what precedes a prompt in its row, padding too, may change it."""
        return self.recurrent or not math.isinf(self.wrong)

    def learn(self, length: int, equal: bool) -> None:
        """Records and stores whether a tree with paths of this length matched plain reading."""
        if equal:
            self.right = max(self.right, length)
        else:
            self.wrong = min(self.wrong, max(length, self.right + 1))
        if self.place is None:
            return
        document = {"right": self.right, "wrong": None if math.isinf(self.wrong) else int(self.wrong)}
        # Only a cache: if writing fails, the next process finds the same.
        with contextlib.suppress(OSError):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.place) as new:
                new.write_text(json.dumps(document), encoding="utf-8")


def reading_of(model: Any, folder: Path | None = None) -> ReadingMode:
    """The properties of a model's trees by its configuration and by earlier checks of such a model.

    Checks are kept in `folder` by configuration, data type, device, and the versions of transformers and
    torch; without a folder they are repeated.
    """
    config = getattr(model, "config", None)
    if config is None:
        return ReadingMode()
    reading = reading_of_config(config, bool(getattr(type(model), "_is_stateful", False)))
    if folder is not None:
        reading.place = folder / f"{model_identity(model)}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            document = json.loads(reading.place.read_text("utf-8"))
            reading.right = int(document["right"])
            reading.wrong = math.inf if document["wrong"] is None else int(document["wrong"])
    return reading


def reading_of_config(config: Any, stateful: bool = False) -> ReadingMode:
    """The properties of a model's trees by its configuration; `stateful` is that of its class in
    transformers."""
    text = config.get_text_config()
    kinds = tuple(_kinds(text))
    return ReadingMode(_window(text, kinds), _recurrent(text, kinds, stateful))


def _kinds(config: Any) -> Iterator[str]:
    for name in _KINDS:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)):
            yield from (kind for kind in value if isinstance(kind, str))


def _recurrent(config: Any, kinds: tuple[str, ...], stateful: bool) -> bool:
    if kinds:
        return any(word in kind for kind in kinds for word in _RECURRENT_KINDS)
    return stateful or any(word in str(getattr(config, "model_type", "")) for word in _RECURRENT_MODELS)


def _window(config: Any, kinds: tuple[str, ...]) -> float:
    lengths = [math.inf]
    for name, word in _WINDOWS.items():
        length = getattr(config, name, None)
        unused = word == "sliding" and getattr(config, "use_sliding_window", True) is False
        if not isinstance(length, int) or length < 1 or unused:
            continue
        if not (kinds and word) or any(word in kind for kind in kinds):
            lengths.append(length)
    return min(lengths)


def model_identity(model: Any) -> str:
    """A digest of what determines how a model computes, except its weights: 32 hexadecimal digits.

    Its configuration, data type, device (the model of a GPU, the instructions of a processor, since kernels
    round in their own way) and way of attention, and the versions of transformers and torch.
    """
    import torch
    import transformers

    config = getattr(model, "config", None)
    document = {} if config is None else config.to_dict()
    settings = {k: v for k, v in document.items() if k not in ("_name_or_path", "transformers_version")}
    first = next(iter(model.parameters()))
    attention = getattr(config, "_attn_implementation", None)
    parts = (
        VERSION,
        settings,
        transformers.__version__,
        torch.__version__,
        attention,
        first.dtype,
        first.device,
        _hardware(first.device),
    )
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hardware(device: Any) -> str:
    """The model of a GPU, or the instructions of a processor that kernels use; empty for other devices."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability()) if device.type == "cpu" else ""
