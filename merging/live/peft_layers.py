"""An adapter by PEFT's own layers in a model that is restored afterwards: DoRA, and factors of experts.

The layers are made from the adapter's modules as they were read and checked, by full names and ranks: no
pattern, option or code of its configuration reaches PEFT.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.errors import MergeError
from merging.live.resident import layer
from merging.live.stack import LiveStack
from merging.members import MergeMember, read_magnitude, read_module, shapes
from merging.model import memory_limit

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAPTER = "default"


@dataclass(frozen=True, slots=True, eq=False)
class PeftAdapter:
    """An adapter that PEFT's layers apply: the PEFT model, and the base model's name of each module."""

    model: Any
    member: MergeMember
    places: Mapping[str, str]

    def parameters(self) -> dict[str, Tensor]:
        """What the layers train, by the names that the member's file has for it."""
        parameters: dict[str, Tensor] = {}
        for module in self.member.spec.modules:
            peft_layer = self.model.get_base_model().get_submodule(self.places[module.name])
            a, b = self.member.places[module.name]
            if module.kind == "embedding":
                parameters[a.name] = peft_layer.lora_embedding_A[_ADAPTER]
                parameters[b.name] = peft_layer.lora_embedding_B[_ADAPTER]
            else:
                parameters[a.name] = peft_layer.lora_A[_ADAPTER].weight
                parameters[b.name] = peft_layer.lora_B[_ADAPTER].weight
            if module.name in self.member.magnitudes:
                magnitude = self.member.magnitudes[module.name]
                parameters[magnitude.name] = peft_layer.lora_magnitude_vector[_ADAPTER].weight
        return parameters


@contextlib.contextmanager
def apply_with_peft(model: nn.Module, member: MergeMember) -> Iterator[PeftAdapter]:
    """Inside the block the model acts as with this adapter loaded by PEFT, whose parameters may be trained.

    Afterwards layers, weights, flags and modes are those of before, bit for bit, also after an error.
    Raises MergeError for a module without a matching layer in the model and for values that are not finite,
    MemoryLimitError, and the errors of reading the member.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    names = {id(module): name for name, module in model.named_modules()}
    of_parameters = set(member.spec.of_parameters)
    plain = [shape for shape in shapes([member]) if shape.name not in of_parameters]
    places = {shape.name: names[id(layer(model, shape, [member]))] for shape in plain}
    ranks = _parameter_ranks(model, member)
    with restore_model(model), calm():
        with memory_limit(f"The adapter {member.name} in addition to the base model"):
            peft_model = get_peft_model(model, _config(member, places, ranks))
            targets = {*peft_model.targeted_module_names, *peft_model.targeted_parameter_names}
            if targets != {*places.values(), *ranks}:
                raise MergeError(
                    f"{member.name}: the names of its modules mean others of the base model too; use the "
                    "model that it was trained on."
                )
            places |= {name: name for name in of_parameters}
            set_peft_model_state_dict(peft_model, _state(member, places))
        for module in member.spec.modules:
            peft_layer: Any = model.get_submodule(places[module.name])
            peft_layer.scaling[_ADAPTER] = module.scaling
        peft_model.eval()
        yield PeftAdapter(peft_model, member, places)


@contextlib.contextmanager
def apply_member(model: nn.Module, member: MergeMember) -> Iterator[None]:
    """Inside the block the model acts as with one adapter, of plain LoRA or DoRA; raises MergeError."""
    if member.apart:
        with apply_with_peft(model, member):
            yield
    else:
        with LiveStack(model, [member]).attach():
            yield


def _parameter_ranks(model: nn.Module, member: MergeMember) -> dict[str, int]:
    """The rank of each expert of each parameter that the member adapts, by the parameter's name.

    PEFT nests the layers of several parameters of one module, the first innermost. Raises MergeError unless
    the factors are those of the parameters.
    """
    targets = member.config.target_parameters or ()
    by_owner: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, parameter in model.named_parameters() if member.spec.of_parameters else ():
        if any(f".{name}".endswith(f".{target}") for target in targets):
            by_owner.setdefault(name.rpartition(".")[0], []).append((name, tuple(parameter.shape)))
    ranks, unmatched = {}, member.modules.keys() & set(member.spec.of_parameters)
    for owner, parameters in by_owner.items():
        for depth, (name, shape) in enumerate(reversed(parameters)):
            module = member.modules.get(f"{owner}{'.base_layer' * depth}")
            experts = shape[0] if len(shape) == 3 else 1
            if (
                module is None
                or module.rank % experts
                or {module.in_features, module.out_features} != set(shape[-2:])
            ):
                raise MergeError(
                    f"{name} of the base model does not match the factors of {member.name}; use the model "
                    "that it was trained on."
                )
            unmatched -= {module.name}
            ranks[name] = module.rank // experts
    if unmatched:
        raise MergeError(
            f"The base model has no parameter {min(unmatched)}; {member.name} belongs to another model."
        )
    return ranks


def _config(member: MergeMember, places: Mapping[str, str], parameters: Mapping[str, int]) -> Any:
    """The LoraConfig that makes the member's layers; scalings are set afterwards."""
    from peft import LoraConfig

    modules = member.modules
    ranks = {place: modules[name].rank for name, place in places.items()}
    targets = sorted(ranks)
    ranks |= parameters
    usual = max(ranks.values())
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        target_modules=targets,
        target_parameters=sorted(parameters) or None,
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != usual},
        use_dora=bool(member.magnitudes),
        task_type="CAUSAL_LM",
    )


def _state(member: MergeMember, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The member's tensors by PEFT's names of them; raises MergeError for NaN or infinity."""
    import torch

    tensors: dict[str, Tensor] = {}
    for module in member.spec.modules:
        stem = f"base_model.model.{places[module.name]}.lora_"
        a, b = read_module(member, module.name)
        if module.kind == "embedding":
            tensors |= {f"{stem}embedding_A": a, f"{stem}embedding_B": b}
        else:
            tensors |= {f"{stem}A.weight": a, f"{stem}B.weight": b}
        if member.magnitudes:
            tensors[f"{stem}magnitude_vector"] = read_magnitude(member, module.name)
        if not all(torch.isfinite(tensors[name].float()).all() for name in tensors if name.startswith(stem)):
            raise MergeError(f"{member.name} cannot be applied: {module.name} contains NaN or infinity.")
    return tensors


@contextlib.contextmanager
def restore_model(model: nn.Module, *, copied: bool = False) -> Iterator[None]:
    """Restores modules, weights, flags and modes of `model` when the block ends, also after an error.

    Replaced weights are restored; with `copied` the matrices are replaced by copies beforehand, so that
    writing into them is harmless, which doubles their memory.
    """
    children = [
        (container, name, child)
        for container in model.modules()
        for name, child in container._modules.items()
    ]
    parameters = [(container, container.data, container.requires_grad) for container in model.parameters()]
    modes = [(container, container.training) for container in model.modules()]
    names = set(vars(model))
    try:
        if copied:
            for parameter, data, _ in parameters:
                if data.ndim == 2:
                    parameter.data = data.clone()
        yield
    finally:
        for parent, name, child in children:
            parent._modules[name] = child
        for parameter, data, requires_grad in parameters:
            parameter.data = data
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
        for module, mode in modes:
            module.training = mode
        for name in set(vars(model)) - names:
            delattr(model, name)


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Silences warnings that are irrelevant to a user.

    PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name, its hooks for LoRA-GA sit on
    layers whose inputs, the embeddings, need no gradient, and it warns about how it adapts layers of GPT-2
    and experts.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("ignore", "The following alpha_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        yield
