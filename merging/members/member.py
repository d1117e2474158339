"""A member of a merge: an adapter folder with only supported tensors, or an error with the reason.

What a merge of updates cannot carry over (DoRA's magnitudes, biases, whole saved layers, an initialisation
that changed the base) is refused by the crawl's reason for it (`catalog.adapters.feature`), so that no part
of an adapter is lost silently. Factors are read with plain reads: pages of a memory map would count as memory
until the whole file has been touched.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import RawIOBase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from catalog.adapters import (
    CONFIG_NAME,
    SENTENCES,
    WEIGHTS_NAME,
    AdapterConfig,
    AdapterSpec,
    BaseModules,
    BaseTable,
    Header,
    LoraModule,
    ModuleNames,
    Tensor,
    adapter_names,
    beside_the_update,
    initial_table,
    is_adapter_folder,
    layers_to_leave_out,
    lora_modules,
    modules_of_folder,
    modules_of_spelling,
    read_config,
    read_header,
    tensors_beside,
)
from catalog.errors import MergeError, UsageError, WeightsError
from catalog.files import verified

if TYPE_CHECKING:
    import torch

_BASE_CONFIG = "config.json"
_PREFIX = 8
# The most files of a pool that stay open, and the fewest.
_MOST_FILES, _FEWEST_FILES = 256, 16
# A module of a layer: what follows the first number is the same for every prefix of the layers.
_NUMBERED = re.compile(r"(?P<place>[^0-9]*?)\.(?P<below>[0-9]+\..+)")
_MAX_CARD = 64 * 1024
# Tensors left out of every member without changing its update: copies of the base model's, auxiliary ones.
_SPARE = frozenset({"base_copy", "auxiliary"})
# The arguments by which callers of each purpose get around a refusal: `without` layers, `heads`, or a `base`
# to fold DoRA with.
_WAYS: Mapping[str, Collection[str]] = {
    "merged": ("without", "heads", "base"),
    "merged or added to a base": ("without", "base"),
    "normalised": ("without", "heads", "base"),
    "compared": ("without", "base"),
}
# Output heads and embeddings, by the last parts of their names.
_EMBEDDINGS = frozenset(("embed_tokens", "embed_in", "wte", "word_embeddings"))
_HEADS = _EMBEDDINGS | {"lm_head", "embed_out"}
_SAVED = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+?)(?:\.modules_to_save(?:\.[^.]+)?)?\.weight")
_MAGNITUDE = ".lora_magnitude_vector"
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,64})[\"']?[ \t]*$", re.MULTILINE)


class FoldedUpdates(Protocol):
    """Updates of full rank that a member's tensors and its base model make together."""

    @property
    def rank(self) -> int:
        """The largest rank of the member's own factors."""

    def read_size(self, member: MergeMember) -> int:
        """The bytes that are read beside the member's factors."""

    def update(self, member: MergeMember, module: str) -> torch.Tensor:
        """The update of a module, (out, in) in float32."""

    def factors(self, member: MergeMember, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B whose product is the update, in float32."""


def _open_files() -> int:
    """The number of files to keep open: half of those that the process may open, within bounds."""
    try:
        import resource
    except ImportError:
        # Windows, whose processes may open 512 and more.
        return _MOST_FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST_FILES
    return min(max(allowed // 2, _FEWEST_FILES), _MOST_FILES)


@dataclass
class Scratch:
    """Memory for one module's factors after another.

    Pages that a process touches for the first time cost more than scaling what is put there, so that large
    tensors of one module take the place of those of the module before. In a `with` block the first files that
    are read stay open until its end.
    """

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    files: dict[Path, RawIOBase] = field(default_factory=dict)
    limit: int = 0

    def __enter__(self) -> Scratch:
        self.limit = _open_files()
        return self

    def __exit__(self, *_: object) -> None:
        self.limit = 0
        while self.files:
            self.files.popitem()[1].close()

    @contextmanager
    def open(self, member: MergeMember) -> Iterator[RawIOBase]:
        """The weights of a member, without a buffer; raises OSError."""
        file = self.files.get(member.folder) or member.weights.open("rb", buffering=0)
        if len(self.files) < self.limit:
            self.files[member.folder] = file
        try:
            yield file
        finally:
            if member.folder not in self.files:
                file.close()

    def bytes(self, name: str, size: int) -> torch.Tensor:
        """`size` undefined bytes, in the memory of the last ones of this name."""
        import torch

        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=torch.uint8)
        return self.buffers[name][:size]

    def matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """An undefined matrix, in the memory of the last one of this name."""
        return self.bytes(name, rows * columns * dtype.itemsize).view(dtype).view(rows, columns)


@dataclass(frozen=True, slots=True)
class MergeMember:
    """An adapter that can be merged.

    `name` is its name in records and messages; `compared` gives the name for comparison of modules whose
    names differ between versions of transformers. `digest` is the sha256 of the weights if it is pinned,
    `source` its origin (repository, commit), `left_out` the tensors that the caller left out, and copies of
    the base model's; all three are copied to merge.json. `base` is the base model if given, as by a pool;
    else the configuration counts. `magnitudes` are the places of the magnitude vectors of a DoRA adapter,
    which no merge holds; with the base model at hand they are `folded` into updates of full rank. `saved`
    are the places of output heads and embeddings that it saves whole, by the names of their layers,
    `dropped` those layers where they are left out. `apart` says why PEFT's own layers alone can apply it, and
    is empty for plain LoRA.
    """

    name: str
    folder: Path
    config: AdapterConfig
    spec: AdapterSpec
    places: Mapping[str, tuple[Tensor, Tensor]] = field(hash=False, repr=False)
    start: int
    license: str | None = None
    digest: str | None = None
    source: Mapping[str, str] = field(default_factory=dict, hash=False)
    left_out: tuple[str, ...] = ()
    compared: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    base: str | None = None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict, hash=False, repr=False)
    folded: FoldedUpdates | None = field(default=None, hash=False, repr=False)
    saved: Mapping[str, Tensor] = field(default_factory=dict, hash=False, repr=False)
    dropped: tuple[str, ...] = ()

    @property
    def apart(self) -> str:
        """Why PEFT's own layers alone can apply the adapter, in words; empty for plain LoRA."""
        if self.magnitudes and self.folded is None:
            return SENTENCES["use_dora"]
        return SENTENCES["target_parameters"] if self.spec.of_parameters else ""

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_NAME

    def sha256(self) -> str:
        """The digest of the weights: the pinned one, else that of the file, which is read."""
        return self.digest or digest_of(self.weights)

    @property
    def modules(self) -> dict[str, LoraModule]:
        """Modules by name."""
        return {module.name: module for module in self.spec.modules}


def load_member(
    folder: Path,
    *,
    name: str | None = None,
    digest: str | None = None,
    license_id: str | None = None,
    source: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    purpose: str = "merged",
    base: str | None = None,
    peft_layers: bool = False,
    dora: bool = False,
    heads: str | None = None,
) -> MergeMember:
    """The adapter in a folder written by PEFT, with its header checked and no weights read.

    `without` names layers, such as lm_head, of which the adapter's factors and saved weights are left out.
    The weights of the base model that PEFT saves with a LoRA of the embeddings or the output head
    (`lm_head.base_layer.weight`) are always left out: they are not part of the adapter. `purpose` is the
    purpose of loading in error messages: "merged", "evaluated". `base` is its base model according to a pool.
    `peft_layers` accepts adapters that PEFT's own layers alone can apply (`MergeMember.apart`): DoRA, with
    the magnitude vectors of all modules, and factors of bare parameters, such as stacked experts. `dora`
    accepts the former alone, to be folded (`fold_dora`). `heads` accepts output heads and embeddings that are
    saved whole, to be left out ("drop") or merged (`MergeMember.saved`).
    Raises MergeError for an adapter that is not plain LoRA, ConfigError and WeightsError for invalid files,
    UsageError if there is no adapter.
    """
    name = name or folder.name
    refusal = f"{name} cannot be {purpose}"
    if not is_adapter_folder(folder):
        raise UsageError(f"{folder} does not contain {CONFIG_NAME}; give a folder written by PEFT.")
    config = read_config(folder, refusal)
    if not (folder / WEIGHTS_NAME).is_file():
        raise UsageError(f"{name} does not contain {WEIGHTS_NAME}; only safetensors files are supported.")
    header = read_header(folder / WEIGHTS_NAME, refusal)
    whole = header
    names = adapter_names(header, config)
    spare = {tensor for tensor, kind in tensors_beside(header, config, names).items() if kind in _SPARE}
    left_out = tuple(t.name for t in header.tensors if t.name in spare or _is_of_layers(t.name, without))
    if left_out:
        header = replace(header, tensors=tuple(t for t in header.tensors if t.name not in set(left_out)))
    saved = _saved_layers(header, config) if heads else {}
    apart = {tensor.name for tensor in saved.values()}
    if apart:
        header = replace(header, tensors=tuple(t for t in header.tensors if t.name not in apart))
    if header is not whole:
        names = adapter_names(header, config)
    spec = lora_modules(header, config, names)
    magnitudes = _magnitudes(header, names) if (peft_layers or dora) and config.use_dora else {}
    of_parameters = peft_layers and bool(spec.of_parameters) and not config.use_dora
    accepted = {"use_dora"} if magnitudes else {"target_parameters"} if of_parameters else set()
    _refuse_features(refusal, purpose, config, spec, accepted)
    if magnitudes:
        _refuse_magnitudes(refusal, spec, magnitudes)
    member = MergeMember(
        name=name,
        folder=folder,
        config=config,
        spec=spec,
        places=_places(header, names),
        start=_PREFIX + header.length,
        license=license_id or _license(folder),
        digest=digest,
        source=dict(source or {}),
        left_out=(*left_out, *sorted(apart)) if heads == "drop" else left_out,
        base=base,
        magnitudes=magnitudes,
        saved={} if heads == "drop" else saved,
        dropped=tuple(sorted(saved)) if heads == "drop" else (),
    )
    moved = {module: path for module, path in names.written.items() if module != path}
    return replace(_rename_modules(member, moved), compared={path: module for module, path in moved.items()})


def load_members(
    folders: Sequence[Path | MergeMember], *, base: str | None = None, table: BaseTable | None = None
) -> tuple[MergeMember, ...]:
    """Members that match: one base model, one name and one shape for every module.

    Spellings of one base model in `table`, by default the built-in table, are equal. `base` overrides the
    base model of all members. If it is known, or a folder with a config.json, it must have their modules; so
    must the base model that a member names. Raises MergeError and the errors of `load_member`.
    """
    if not folders:
        raise UsageError("A merge requires at least one adapter; name it.")
    members = [entry if isinstance(entry, MergeMember) else load_member(entry) for entry in folders]
    refuse_apart(members)
    if base is None:
        _refuse_bases(members, table or initial_table())
    modules = base_modules(base) if base else None
    if base is None:
        base = base_of(members, None, table)
        modules = modules_of_spelling(base)
    members = [_place_member(member, base or "", modules) for member in members]
    if modules is not None:
        _refuse_widths(members, base or "", modules)
        members = [_place_saved(member, base or "", modules) for member in members]
    members = _agree_on_names(members)
    _refuse_shapes(members)
    if modules is None:
        _refuse_paths(members, base)
        _refuse_saved_paths(members, base)
    return tuple(members)


def base_of(
    members: Sequence[MergeMember], base: str | None = None, table: BaseTable | None = None
) -> str | None:
    """The base model of a merge by its canonical name: the given one, or that of the members."""
    bases = table or initial_table()
    if base:
        return bases.canonical(base)
    return next((name for m in members if (name := _base(m, bases))), None)


def base_source(base: str | None, canonical: str | None) -> str | None:
    """What describes a base model: the folder that was given, with its config.json, else its name."""
    return base if base and (Path(base) / _BASE_CONFIG).is_file() else canonical or base


def base_note(members: Sequence[MergeMember], base: str | None, table: BaseTable | None = None) -> str | None:
    """A note on members whose configuration names a base model other than the merge's, or None.

    A path that does not lead to a known model is ignored.
    """
    bases = table or initial_table()
    unlike = [
        (member, other)
        for member in members
        if (other := bases.identify(member.config.base_model).canonical) and base and other != base
    ]
    if not unlike:
        return None
    more = f", and {len(unlike) - 1} more name another base than this" if len(unlike) > 1 else ""
    (member, other), *_ = unlike
    return f"The members are taken as adapters of {base}, but {member.name} names {other}{more}."


def _base(member: MergeMember, table: BaseTable) -> str | None:
    return table.canonical(member.base) or table.canonical(member.config.base_model)


def read_module(
    member: MergeMember, module: str, scratch: Scratch | None = None, name: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """A of (rank, in) and B of (out, rank) as stored, in the file's data type and in separate memory.

    With `scratch` this memory is that of the last ones of the same `name`. Raises WeightsError if the file is
    truncated or cannot be read.
    """
    if member.folded is not None:
        return member.folded.factors(member, module)
    a, b = _read_tensors(member, *member.places[module], memory=scratch or Scratch(), name=name)
    return a, b


def read_magnitude(member: MergeMember, module: str) -> torch.Tensor:
    """The magnitudes of a module's outputs, (out,), as stored; raises as `read_module` does."""
    return _read_tensors(member, member.magnitudes[module], memory=Scratch())[0]


def read_saved_rows(member: MergeMember, layer: str, rows: slice) -> torch.Tensor:
    """Rows of a layer that a member saves whole, in float32; raises as `read_module` does."""
    import torch

    tensor = member.saved[layer]
    width = (tensor.end - tensor.begin) // tensor.shape[0]
    part = replace(
        tensor,
        shape=(rows.stop - rows.start, *tensor.shape[1:]),
        begin=tensor.begin + rows.start * width,
        end=tensor.begin + rows.stop * width,
    )
    return _read_tensors(member, part, memory=Scratch())[0].to(torch.float32)


def refuse_apart(members: Sequence[MergeMember]) -> None:
    """Raises MergeError for the first member that PEFT's own layers alone can apply."""
    for member in members:
        if member.apart:
            raise MergeError(
                f"{member.name} cannot be merged or weighted: {member.apart}, and only updates "
                "scaling * B A add up; evaluate it alone."
            )


def digest_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal; raises WeightsError if it cannot be read."""
    try:
        return verified.digest_of(path)
    except OSError as error:
        raise WeightsError("unreadable", f"The file {path.name} cannot be read: {error}.") from error


def _refuse_features(
    refusal: str, purpose: str, config: AdapterConfig, spec: AdapterSpec, accepted: Collection[str]
) -> None:
    """Raises MergeError for the first feature that makes the update different from scaling * B A, except for
    accepted reasons."""
    features = (row for row in beside_the_update(config, spec) if row.reason not in accepted)
    feature = next(features, None)
    if feature is not None:
        description = f"{feature.reason}: {feature.detail}" if feature.detail else feature.reason
        ways = _WAYS.get(purpose, ())
        layers = ",".join(layers_to_leave_out(config, spec, accepted)) if "without" in ways else ""
        way = (
            f'`without="{layers}"` leaves out these layers'
            if layers
            else f"only scaling * B A is {purpose} here"
        )
        if layers and "heads" in ways and _HEADS.issuperset(layers.split(",")):
            way += ", and `heads` first, average or drop says what becomes of the saved weights"
        if feature.reason == "use_dora" and "base" in ways:
            way += ', and DoRA with the folder of its base model (`base="FOLDER"`)'
        raise MergeError(f"{refusal}: {SENTENCES[feature.reason]} ({description}); {way}.")


def _refuse_magnitudes(refusal: str, spec: AdapterSpec, magnitudes: Mapping[str, Tensor]) -> None:
    """Raises MergeError unless there is one magnitude for each output of each module."""
    sizes = {module.name: (module.out_features,) for module in spec.modules}
    for name in sorted({*sizes, *magnitudes}):
        tensor = magnitudes.get(name)
        if tensor is None or tensor.shape != sizes.get(name) or tensor.dtype not in _dtypes():
            stored = "absent" if tensor is None else f"{tensor.dtype} of {list(tensor.shape)}"
            raise MergeError(
                f"{refusal}: the magnitude vector of {name} is {stored}, not one number for each output; "
                "fetch it again."
            )


def _saved_layers(header: Header, config: AdapterConfig) -> dict[str, Tensor]:
    """The matrices of output heads and embeddings that are saved whole, by the names of their layers."""
    saved = {name for name, kind in tensors_beside(header, config).items() if kind == "saved"}
    layers = {}
    for tensor in header.tensors:
        match = _SAVED.fullmatch(tensor.name) if tensor.name in saved else None
        is_matrix = len(tensor.shape) == 2 and all(tensor.shape) and tensor.dtype in _dtypes()
        if match and match["layer"].rpartition(".")[2] in _HEADS and is_matrix:
            layers[match["layer"]] = tensor
    return layers


def _is_of_layers(tensor: str, without: Collection[str]) -> bool:
    """Whether a tensor belongs to a named layer."""
    return any(f".{layer}." in f".{tensor}." for layer in without)


def _refuse_bases(members: Sequence[MergeMember], table: BaseTable) -> None:
    base_pairs = [(member, base) for member in members if (base := _base(member, table))]
    for member, base in base_pairs[1:]:
        first, expected = base_pairs[0]
        if base != expected:
            raise MergeError(
                f"{first.name} belongs to {expected} and {member.name} to {base}; "
                "merge adapters of one base, or name the one that they share (`base`)."
            )


def _place_member(member: MergeMember, base: str, modules: BaseModules | None) -> MergeMember:
    """The member with the base model's names of its modules, as far as these are known.

    Raises MergeError for a module that the base model does not have.
    """
    if modules is None or member.config.layer_replication:
        return member
    places = {
        module.name: modules.place(module.name, module.in_features, module.out_features)
        for module in member.spec.modules
    }
    shared = Counter(places.values())
    for module, place in places.items():
        if place is None or shared[place] > 1:
            raise MergeError(
                f"{member.name} is not an adapter of {base}, which has no module "
                f"{module}; name the base that it was trained on."
            )
    return _rename_modules(
        member, {module: place for module, place in places.items() if place not in (None, module)}
    )


def _refuse_widths(members: Sequence[MergeMember], base: str, modules: BaseModules) -> None:
    """Raises MergeError for a module that matches the base model that its member names, but not this one."""
    for member in members:
        own = modules_of_spelling(member.config.base_model)
        if own is None or member.config.layer_replication:
            continue
        for module in member.spec.modules:
            widths = module.name, module.in_features, module.out_features
            if module.name in own.shapes and not own.misfit(*widths) and (misfit := modules.misfit(*widths)):
                raise MergeError(
                    f"{member.name} is not an adapter of {base}: {module.name} is {_shape(module)} in it, "
                    f"and {misfit} in {base}; name the base that it was trained on."
                )


def _place_saved(member: MergeMember, base: str, modules: BaseModules) -> MergeMember:
    """The member with the base model's names of the layers that it saves whole.

    Raises MergeError for a layer that the base model does not have, or has in another width.
    """
    saved = {}
    for layer, tensor in member.saved.items():
        # `saved_heads` compares the vocabulary.
        width = tensor.shape[1]
        widths = (None, width) if layer.rpartition(".")[2] in _EMBEDDINGS else (width, None)
        place = modules.place(layer, *widths)
        if place is None or place in saved:
            raise MergeError(
                f"{member.name} saves {layer} whole, and {base} has no such layer; use `heads` drop, or name "
                "the base that it was trained on."
            )
        if misfit := modules.misfit(place, *widths):
            raise MergeError(
                f"{member.name} is not an adapter of {base}: it saves {layer} for a width of "
                f"{width}, and that is {misfit} in {base}; use `heads` drop, or name the base that "
                "it was trained on."
            )
        saved[place] = tensor
    return replace(member, saved=saved) if saved else member


def _refuse_saved_paths(members: Sequence[MergeMember], base: str | None) -> None:
    """Raises MergeError if members of an unknown base model save or adapt a head or an embedding under
    different paths, of which one at most is in the base."""
    places: dict[str, tuple[MergeMember, str]] = {}
    for member in members:
        adapted = (m.name for m in member.spec.modules if m.short_name in _HEADS)
        for layer in (*member.saved, *(adapted if any(other.saved for other in members) else ())):
            first, name = places.setdefault(layer.rpartition(".")[2], (member, layer))
            if name != layer:
                raise MergeError(
                    f"{first.name} has {name} where {member.name} has {layer}, and the modules of "
                    f"{base or 'their base'} are not known here; name its folder as `base`."
                )


def base_modules(base: str) -> BaseModules | None:
    """The modules of a base by any of its names, or of the model in a folder; None if they are unknown."""
    if (Path(base) / _BASE_CONFIG).is_file():
        return modules_of_folder(Path(base))
    return modules_of_spelling(base)


def _agree_on_names(members: Sequence[MergeMember]) -> list[MergeMember]:
    """The members with one name for each module: their own if these agree, else those for comparison."""
    spelled: dict[str, set[str]] = {}
    for member in members:
        for module in member.places:
            spelled.setdefault(member.compared.get(module, module), set()).add(module)
    if all(len(names) == 1 for names in spelled.values()):
        return list(members)
    return [replace(_rename_modules(member, member.compared), compared={}) for member in members]


def _rename_modules(member: MergeMember, names: Mapping[str, str]) -> MergeMember:
    """The member with different names for some modules."""
    if not names:
        return member
    modules = [replace(module, name=names.get(module.name, module.name)) for module in member.spec.modules]
    modules.sort(key=lambda m: (-1 if m.layer is None else m.layer, m.name))
    return replace(
        member,
        spec=replace(member.spec, modules=tuple(modules)),
        places={names.get(module, module): pair for module, pair in member.places.items()},
        magnitudes={names.get(module, module): tensor for module, tensor in member.magnitudes.items()},
    )


def _refuse_shapes(members: Sequence[MergeMember]) -> None:
    first_shapes: dict[str, tuple[MergeMember, LoraModule]] = {}
    for member in members:
        for module in member.spec.modules:
            first, other = first_shapes.setdefault(module.name, (member, module))
            shapes = [(m.kind, m.in_features, m.out_features) for m in (other, module)]
            if shapes[0] != shapes[1]:
                raise MergeError(
                    f"{module.name} is {_shape(other)} in {first.name} and {_shape(module)} in "
                    f"{member.name}; merge adapters of one base."
                )


def _refuse_paths(members: Sequence[MergeMember], base: str | None) -> None:
    """Raises MergeError if two members of an unknown base model have the same layers under different
    prefixes.

    Of model.layers.0.self_attn.q_proj and transformer.h.0.self_attn.q_proj one at most is in the base, and a
    merge of both would have only half an effect. A member with modules in both places has a base model with
    both.
    """
    places: dict[tuple[str, str], tuple[MergeMember, set[str]]] = {}
    for member in members:
        own: dict[tuple[str, str], set[str]] = {}
        for module in member.spec.modules:
            if match := _NUMBERED.fullmatch(module.name):
                own.setdefault((match["below"], _shape(module)), set()).add(module.name)
        for key, names in own.items():
            first, other_names = places.setdefault(key, (member, names))
            if names.isdisjoint(other_names):
                raise MergeError(
                    f"{first.name} has {min(other_names)} where {member.name} has {min(names)}, and the "
                    f"modules of {base or 'their base'} are not known here; name its folder as `base`."
                )
            other_names |= names


def _shape(module: LoraModule) -> str:
    return f"{module.kind} of {module.in_features} to {module.out_features}"


def _places(header: Header, names: ModuleNames) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        key = names.keys.get(tensor.name)
        if key is not None:
            halves.setdefault(key.module, {})[key.side] = tensor
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _magnitudes(header: Header, names: ModuleNames) -> dict[str, Tensor]:
    """The magnitude vectors by module; under their own names where no factor has their path."""
    modules = {_path(name): key.module for name, key in names.keys.items()}
    paths = {_path(t.name): t for t in header.tensors if _MAGNITUDE in t.name}
    return {modules.get(path, path): tensor for path, tensor in paths.items()}


def _path(tensor: str) -> str:
    return tensor.rpartition(".lora_")[0]


def _read_tensors(
    member: MergeMember, *tensors: Tensor, memory: Scratch, name: str = ""
) -> list[torch.Tensor]:
    """Tensors as stored. In a block, neighbours in the file, as A and B of PEFT, are read at once."""
    first, last = tensors[0], tensors[-1]
    at_once = memory.limit > 0 and all(
        left.end == right.begin and left.dtype == right.dtype for left, right in pairwise(tensors)
    )
    try:
        with memory.open(member) as file:
            if at_once:
                raw = _read(file, member, first.begin, memory.bytes(name, last.end - first.begin))
                parts = [raw[tensor.begin - first.begin : tensor.end - first.begin] for tensor in tensors]
            else:
                parts = [
                    _read(file, member, tensor.begin, memory.bytes(f"{name}.{n}", tensor.end - tensor.begin))
                    for n, tensor in enumerate(tensors)
                ]
    except OSError as error:
        raise WeightsError("unreadable", f"The weights of {member.name} cannot be read: {error}.") from error
    return [
        part.view(_dtypes()[tensor.dtype]).view(tensor.shape)
        for tensor, part in zip(tensors, parts, strict=True)
    ]


def _read(file: RawIOBase, member: MergeMember, begin: int, raw: torch.Tensor) -> torch.Tensor:
    """The bytes from `begin` on, in the memory of `raw`."""
    file.seek(member.start + begin)
    view, done = memoryview(raw.numpy().data), 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    if done < raw.numel():
        raise WeightsError("truncated", f"The weights of {member.name} are truncated; fetch them again.")
    return raw


@functools.cache
def _dtypes() -> Mapping[str, torch.dtype]:
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }


def _license(folder: Path) -> str | None:
    """The license in the front matter of the model card, None without one."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return None
    parts = text.split("\n---", 1)
    match = _LICENSE.search(parts[0]) if text.startswith("---") and len(parts) == 2 else None
    return match[1].lower() if match else None
