"""A loaded base model: weights, tokenizer, context length, and their origin.

The model is not trained or changed; adapters are added by `merging.live`. Only safetensors are read, and no
code in a repository is executed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from catalog.errors import NotFoundError, UsageError
from catalog.extras import require_extra
from merging.model.gguf import GgufError, check_architecture
from merging.model.memory import MemoryRecord, memory_limit
from merging.model.prompts import DATE
from merging.model.reading import ReadingMode, reading_of, reading_of_config

if TYPE_CHECKING:
    import torch

# The recycling paper's longest sequence (1.5); also bounds the memory of attention masks.
CONTEXT = 2048
# Below the folder of base models: the results of checks of how models read prompts.
CHECKS = ".reading"
BaseDtype = Literal["bfloat16", "float16", "float32", "8bit", "4bit"]
# Below 16 bits weights are stored by bitsandbytes.
QUANTISED = ("8bit", "4bit")
# Types of models whose positions are those of the row, and which accept a tree without an error.
_BY_ROW = frozenset({"gpt_neo", "mpt"})


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBase:
    """A causal language model with its tokenizer; `limit` is the maximum number of tokens of a prompt with
    its answer.

    `name` is what adapters name as their base, `revision` the commit of the Hub or None. `reading` records
    which trees of prompts the model reads correctly, by default from its configuration. `date` is the date of
    the prompts, for chat templates that include one. `memory` records what did not fit into the device.
    """

    name: str
    model: Any
    tokenizer: Any
    limit: int
    revision: str | None = None
    reading: ReadingMode = field(default=None)  # type: ignore[assignment]
    date: date = DATE
    memory: MemoryRecord = field(default_factory=MemoryRecord)

    def __post_init__(self) -> None:
        if self.reading is None:
            object.__setattr__(self, "reading", reading_of(self.model))

    @property
    def _parameter(self) -> torch.Tensor:
        parameter: torch.Tensor = next(iter(self.model.parameters()))
        return parameter

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights; of those that are not quantised, for a quantised model."""
        return self._parameter.dtype

    @property
    def quantised(self) -> str:
        """ "8bit" or "4bit" for a model whose weights are quantised, else ""."""
        return next((name for name in QUANTISED if getattr(self.model, f"is_loaded_in_{name}", False)), "")


def load_base(
    base: str,
    *,
    bases: Path | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    revision: str | None = None,
    date: date = DATE,
) -> LoadedBase:
    """The base model in the folder `base`, kept as `base` below the folder `bases`, or of that id on the Hub.

    `device` is "cpu", a GPU such as "cuda:1", or "auto", which spreads a model over all GPUs. `dtype` is by
    default float32 on a CPU and bfloat16 elsewhere; "8bit" and "4bit" are for reading and training on a GPU,
    by bitsandbytes. `date` is the date of the prompts. Weights are read straight to their device. The model
    is in evaluation mode and its parameters do not require gradients. Results of checks of its way of reading
    are kept below `bases`. Raises NotFoundError if the model does not exist, UsageError for one that is not a
    causal language model, an unavailable device or a data type that it cannot have, and MemoryLimitError if
    it does not fit into memory.
    """
    require_extra("eval", "A base model")
    import torch

    from merging.model.products import quicken_layers

    if dtype is not None and dtype not in get_args(BaseDtype):
        names = ", ".join(get_args(BaseDtype))
        raise UsageError(f"The data type of a base model must be one of {names}, not {dtype} (`dtype`).")
    if Path(base).suffix == ".gguf":
        raise UsageError(f"{base} is a GGUF file; convert it once with `keep_base(ID, {base})`.")
    place = checkpoint(base, bases)
    where = _find_device(device)
    kind = dtype or default_dtype(where.type)
    options = {
        "dtype": getattr(torch, "bfloat16" if kind in QUANTISED else kind),
        **_placement(device, where),
    }
    if kind in QUANTISED:
        options["quantization_config"] = _quantisation(kind, where)
    with memory_limit(f"The base model {base}"):
        model, tokenizer = _load(base, str(place or base), revision, options)
        model.eval().requires_grad_(False)
        quicken_layers(model)
    text = model.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or CONTEXT)
    commit = getattr(model.config, "_commit_hash", None)
    reading = reading_of(model, bases / CHECKS if bases else None)
    return LoadedBase(base, model, tokenizer, min(longest, CONTEXT), commit, reading, date)


def default_dtype(device: str) -> BaseDtype:
    """The data type of a base model's weights on a device where none is given."""
    return "float32" if device == "cpu" else "bfloat16"


def checkpoint(base: str, bases: Path | None) -> Path | None:
    """The folder of a base model on this machine, None if only the Hub may have it."""
    if (Path(base) / "config.json").is_file():
        return Path(base)
    local_copy = bases / kept_name(base) if bases else None
    return local_copy if local_copy and (local_copy / "config.json").is_file() else None


def kept_name(base: str) -> str:
    """The name of the folder in which a base model of the Hub is kept; raises UsageError unless this is an
    id."""
    parts = base.split("/")
    if len(parts) > 2 or not all(parts) or any(part.startswith(".") or "\\" in part for part in parts):
        raise UsageError(f"{base!r} is neither a folder with a model nor an id such as owner/name.")
    return "--".join(parts)


def keep_base(base: str, source: Path, bases: Path) -> Path:
    """Converts a GGUF file into a checkpoint of float32 below `bases`, under the id `base`; the folder.

    Llama and Qwen2 models only. Weights have the precision of the file, quantised or not. Raises UsageError
    if the file is not such a model, or if a model is already kept, and NotFoundError if it is missing.
    """
    target = bases / kept_name(base)
    if target.exists():
        raise UsageError(f"A checkpoint of {base} is already kept in {target}; remove that folder first.")
    kind = check_source(source)
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM

    from merging.members import new_folder

    model_class: Any = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[kind]
    # The progress bar of the GGUF reader cannot be turned off.
    without_bar = contextlib.redirect_stderr(io.StringIO())
    with quiet(), without_bar, _parsed_once(), new_folder(target, overwrite=False) as folder:
        try:
            read = model_class.from_pretrained(source.parent, gguf_file=source.name)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        # The library's errors for invalid values are not documented.
        except Exception as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
            raise UsageError(f"{source} is not a GGUF file of a Llama or Qwen2 model: {why}.") from error
        # A model that was read from GGUF refuses to be saved; a fresh one with the same values does not.
        config = type(read.config)(
            **{
                key: value
                for key, value in read.config.to_dict().items()
                if key not in ("quantization_config", "_name_or_path", "transformers_version")
            }
        )
        # Without storage, and so without the time to draw weights that are replaced at once.
        with torch.device("meta"):
            fresh = model_class(config)
        fresh.load_state_dict(read.state_dict(), assign=True)
        fresh.generation_config.pad_token_id = tokenizer.pad_token_id
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target


def check_source(source: Path) -> str:
    """The architecture of a GGUF file; raises NotFoundError or UsageError unless it is a whole one of a Llama
    or Qwen2 model.
    """
    require_extra("eval", "A base model from a GGUF file")
    if not source.is_file():
        raise NotFoundError(f"{source} does not exist; give a GGUF file.")
    try:
        return check_architecture(source)
    except GgufError as error:
        raise UsageError(f"{source} is not a GGUF file of a Llama or Qwen2 model: {error}.") from error
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns off progress bars and notes of transformers; its errors are still printed."""
    from transformers.utils import logging as notes

    progress_bar, level = notes.is_progress_bar_enabled(), notes.get_verbosity()
    notes.disable_progress_bar()  # type: ignore[no-untyped-call]
    notes.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        notes.set_verbosity(level)
        if progress_bar:
            notes.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Lets transformers parse a GGUF file once, and make one map of the names of its tensors.

    It would parse the file for the configuration, the weights and the tokenizer, and make the map for each
    module of the model.
    """
    import gguf

    made = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    vars(gguf).update({name: functools.cache(make) for name, make in made.items()})
    try:
        yield
    finally:
        vars(gguf).update(made)


def first_look(base: str) -> tuple[Any, bool]:
    """The tokenizer of a base model, and whether the first versions may have misread its prompts in trees.

    The latter by its configuration. For a base model of the Hub its cached files suffice. Raises as
    `load_base` does.
    """
    from transformers import AutoConfig, AutoTokenizer

    def look(local: bool) -> tuple[Any, Any]:
        options: Any = {"trust_remote_code": False, "local_files_only": local}
        config = AutoConfig.from_pretrained(base, **options)
        return AutoTokenizer.from_pretrained(base, **options), config

    with quiet(), _loading(base):
        try:
            tokenizer, config = look(True)
        except OSError:
            _check_hub_has(base, None)
            tokenizer, config = look(False)
    reading = reading_of_config(config)
    return tokenizer, reading.recurrent or reading.window < CONTEXT or config.model_type in _BY_ROW


def _check_hub_has(name: str, revision: str | None) -> None:
    """Raises NotFoundError unless the Hub, or the cache of what it sent, has a model of this id.

    One request. Without it transformers would repeat those for each of several files, with pauses, for an id
    that does not exist or without a network.
    """
    from transformers.utils.hub import has_file

    reason: Exception | None = None
    try:
        with quiet():
            found = has_file(name, "config.json", revision=revision)
    # The errors of the library for ids and for proxies are not documented.
    except Exception as error:
        found, reason = False, error
    if not found:
        raise NotFoundError(
            f"The base model {name} is neither a folder with config.json nor found on the Hub; check the id "
            "and the connection, and HF_TOKEN if the model is private or gated."
        ) from reason


def _find_device(device: str) -> torch.device:
    """The device of the first weights; "auto" is a GPU where there is one."""
    import torch

    try:
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {device} is not available; use cpu or another.") from error
    return where


def _placement(device: str, where: torch.device) -> dict[str, Any]:
    """The options that read weights straight to their device; a CPU requires none."""
    if where.type == "cpu":
        return {}
    return {"device_map": "auto" if device == "auto" else {"": where}}


def _quantisation(kind: str, where: torch.device) -> Any:
    """The settings of a quantised model; raises UsageError where it cannot be loaded."""
    if where.type != "cuda":
        raise UsageError(
            f"A base model in {kind} requires a CUDA device (`device`); use bfloat16 or float32."
        )
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            f"A base model in {kind} requires the extra quantise (bitsandbytes is not installed): "
            "pip install 'loradex[quantise]'."
        )
    import torch
    from transformers import BitsAndBytesConfig

    settings: Any = BitsAndBytesConfig
    if kind == "8bit":
        return settings(load_in_8bit=True)
    # NF4 with a second quantisation of its constants, as QLoRA has it (arXiv 2305.14314, section 3).
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _load(name: str, place: str, revision: str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if place == name and not Path(place).is_dir():
        _check_hub_has(name, revision)
    with quiet(), _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, use_safetensors=True, trust_remote_code=False, **options
        )
    return model, tokenizer


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """Translates the errors of transformers for a model that cannot be loaded."""
    try:
        yield
    except OSError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFoundError(f"The base model {name} cannot be loaded: {first}") from error
    except ValueError as error:
        raise UsageError(f"{name} is not a causal language model: {error}.") from error
