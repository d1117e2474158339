"""The variants of LoRA that `merging.learning` knows: how PEFT starts and trains each, and how it is stored.

The stored adapter always belongs to the unchanged base model, whatever the variant does during training.
Those that subtract their start from the base's weights (PiSSA, OLoRA, LoRA-GA) are stored as the difference
to that start.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from catalog.errors import UsageError
from merging.live import calm, restore_model
from merging.model import LoadedBase, unreachable_layers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

# AdamW of the recycling paper (1.8); LoRA+ recommends that B learns 2^4 times as fast as A (section 4).
BETAS = (0.9, 0.999)
LORAPLUS_RATIO = 16.0
ALL_LINEAR = "all-linear"
# The layers that PEFT 0.21 takes for experts that were layers before transformers 5, the types of models for
# which it refuses `out_proj`, whose weights kernels read.
_OLD_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table.

    `options` are fields of PEFT's LoraConfig. `mergeable` says that the stored adapter is plain LoRA, which
    the rest of this program merges. `slower` is how many times lower its best learning rate lies than that of
    LoRA: for PiSSA, OLoRA and LoRA-GA by the poster of "Learning Rate Matters" (arXiv 2602.04998), for LoRA+
    by the advice in PEFT's documentation.
    """

    name: str
    summary: str
    paper: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mergeable: bool = True
    changes_base: bool = False
    slower: float = 1.0
    optimiser: Literal["adamw", "loraplus", "lorafa"] = "adamw"


_ROWS = (
    Variant("lora", "A random and B zero, scaled by alpha / r.", "https://arxiv.org/abs/2106.09685"),
    Variant(
        "rslora",
        "LoRA scaled by alpha over the root of r.",
        "https://arxiv.org/abs/2312.03732",
        {"use_rslora": True},
    ),
    Variant(
        "dora",
        "A magnitude for each output is trained beside the direction; no merge holds it.",
        "https://arxiv.org/abs/2402.09353",
        {"use_dora": True},
        mergeable=False,
    ),
    Variant(
        "pissa",
        "Starts from the largest singular vectors of each weight.",
        "https://arxiv.org/abs/2404.02948",
        {"init_lora_weights": "pissa"},
        changes_base=True,
        slower=10.0,
    ),
    Variant(
        "olora",
        "Starts from the QR decomposition of each weight.",
        "https://arxiv.org/abs/2406.01775",
        {"init_lora_weights": "olora"},
        changes_base=True,
        slower=18.2,
    ),
    Variant(
        "lora-ga",
        "Starts from singular vectors of the gradient of the first batch.",
        "https://arxiv.org/abs/2407.05000",
        {"init_lora_weights": "lora_ga"},
        changes_base=True,
        slower=18.2,
    ),
    Variant(
        "gaussian",
        "A normal with standard deviation 1 / r, B zero.",
        "https://arxiv.org/abs/2106.09685",
        {"init_lora_weights": "gaussian"},
    ),
    Variant(
        "orthogonal",
        "A and B both start random, in orthogonal spaces, so that B A is zero; even ranks only.",
        "https://datta0.github.io/posts/rethink-lora-init/",
        {"init_lora_weights": "orthogonal"},
    ),
    Variant(
        "mica",
        "B is fixed to the smallest singular vectors of each weight; only A is trained.",
        "https://arxiv.org/abs/2604.01694",
        {"init_lora_weights": "mica"},
    ),
    Variant(
        "loraplus",
        f"LoRA whose B learns {LORAPLUS_RATIO:.0f} times as fast as A.",
        "https://arxiv.org/abs/2402.12354",
        slower=2.0,
        optimiser="loraplus",
    ),
    Variant(
        "lora-fa",
        "LoRA whose A stays as it was drawn; the gradient of B is corrected for it.",
        "https://arxiv.org/abs/2308.03303",
        optimiser="lorafa",
    ),
)
VARIANTS: Mapping[str, Variant] = {row.name: row for row in _ROWS}


def variant(name: str) -> Variant:
    """The row of that name; raises UsageError with all names."""
    if name not in VARIANTS:
        raise UsageError(f"Unknown variant {name!r}; choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def reachable(model: nn.Module) -> tuple[str | list[str], tuple[str, ...]]:
    """The modules that "all-linear" means for a model in PEFT, and the last names of those it leaves out.

    Experts that are one tensor of three dimensions are not layers, and for some models PEFT takes layers of
    their old names for them; it refuses `out_proj` of Mamba's models, whose kernels read its weights without
    calling it. Mamba does so with `dt_proj`, and routers of experts return more than their output. Raises
    UsageError for a model without such a layer.
    """
    from torch import nn

    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    experts = any(parameter.ndim == 3 and "experts" in name for name, parameter in model.named_parameters())
    read = {*(_experts_to_peft(model) if experts else ()), *(("out_proj",) if kind in _MAMBA else ())}
    unreachable = unreachable_layers(model)
    if not (read or unreachable or experts):
        return ALL_LINEAR, ()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [
        name
        for name, parameter in model.named_modules()
        if isinstance(parameter, nn.Linear) and parameter is not head
    ]
    linear = [name for name in names if name.rpartition(".")[2] not in read and name not in unreachable]
    if not linear:
        raise UsageError(
            f"A model of the type {kind} has no linear layer that an adapter can be trained on; use another "
            "model."
        )
    left = {name.rpartition(".")[2] for name in names} - {name.rpartition(".")[2] for name in linear}
    return linear, tuple(sorted({*left, *(["experts"] if experts else [])}))


def _experts_to_peft(model: nn.Module) -> frozenset[str]:
    """The names of layers that PEFT takes for experts of this model, which are no layers."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:
        return _OLD_EXPERTS
    config = LoraConfig(target_modules=sorted(_OLD_EXPERTS))
    convert(config, model, None)
    return _OLD_EXPERTS.difference(config.target_modules or ())


@contextlib.contextmanager
def adapt_model(model: nn.Module, row: Variant, config: Any, gradient: Callable[[], None]) -> Iterator[Any]:
    """The PEFT model of a new adapter in `model`, which is restored, bit for bit, when the block ends.

    `config` is a LoraConfig; its options of the variant are set here. `gradient` runs one batch forward and
    backward, for variants that start from a gradient. Random starts come from torch's generator. Raises
    UsageError for missing modules or a rank that the variant does not support.
    """
    from peft import get_peft_model

    for name, value in row.options.items():
        setattr(config, name, value)
    with restore_model(model, copied=row.changes_base):
        try:
            with calm():
                if config.init_lora_weights == "lora_ga":
                    _estimate(model, config, gradient)
                peft_model = get_peft_model(model, config)
        except ValueError as error:
            first = str(error).strip().partition("\n")[0].rstrip(".")
            raise UsageError(f"An adapter of the variant {row.name} cannot be created: {first}.") from error
        _refuse_short(row, config, peft_model)
        yield peft_model


def optimiser(row: Variant, model: Any, rate: float) -> Optimizer:
    """The optimiser of the adapter's parameters: AdamW without weight decay, or the optimiser of the
    variant."""
    import torch
    from peft import optimizers

    adamw: Optimizer
    if row.optimiser == "loraplus":
        adamw = optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=LORAPLUS_RATIO, betas=BETAS
        )
    elif row.optimiser == "lorafa":
        config = model.peft_config["default"]
        adamw = optimizers.create_lorafa_optimizer(model, r=config.r, lora_alpha=config.lora_alpha, lr=rate)
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        adamw = torch.optim.AdamW(trained, lr=rate, betas=BETAS, weight_decay=0.0)
    return adamw


def factors(model: Any) -> dict[str, Tensor]:
    """Copies of the adapter's tensors on the CPU, by the names under which PEFT stores them."""
    from peft import get_peft_model_state_dict

    with calm():
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: state[name].detach().to("cpu", copy=True) for name in sorted(state)}


def difference(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors of B A - B0 A0, float32, of twice the rank.

    PEFT stores [A; A0] and [B, -B0]. The same product is returned here in balanced factors, by its singular
    value decomposition in float64: rounded to bfloat16 the former would lose small updates in the large
    start.
    """
    import torch

    tensors = {}
    for name in now:
        if "lora_A" not in name:
            continue
        other = name.replace("lora_A", "lora_B")
        wide = torch.cat([now[name], start[name]]).double()
        tall = torch.cat([now[other], -start[other]], dim=1).double()
        # min(in, 2r) and min(out, 2r) columns: of a narrow layer some of the 2r factors are zero.
        left, middle = torch.linalg.qr(tall)
        right, last = torch.linalg.qr(wide.T)
        u, sizes, v = torch.linalg.svd(middle @ last.T, full_matrices=False)
        roots = sizes.sqrt()
        a, b = torch.zeros_like(wide), torch.zeros_like(tall)
        a[: len(roots)] = roots[:, None] * (v @ right.T)
        b[:, : len(roots)] = (left @ u) * roots
        tensors[name], tensors[other] = a.float(), b.float()
    return tensors


def config_to_store(row: Variant, config: Any, base: LoadedBase) -> Any:
    """The LoraConfig by which the stored adapter is loaded: plain LoRA, or DoRA.

    The initialisation is not needed for loading, and would change the base model again.
    """
    plain = copy.deepcopy(config)
    plain.base_model_name_or_path, plain.revision, plain.inference_mode = base.name, base.revision, True
    plain.init_lora_weights, plain.lora_ga_config = True, None
    plain.target_modules = _short(set(plain.target_modules), base.model)
    if row.changes_base:
        plain.r, plain.lora_alpha = 2 * plain.r, 2 * plain.lora_alpha
    return plain


def _short(names: set[str], model: nn.Module) -> set[str]:
    """The last parts of full names if they mean exactly these modules."""
    short = {name.rpartition(".")[2] for name in names}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == names else names


def _estimate(model: nn.Module, config: Any, gradient: Callable[[], None]) -> None:
    from peft import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    if config.target_modules == ALL_LINEAR:
        from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

        # PEFT expands the name when the adapter is made, which is too late for the gradient.
        _maybe_include_all_linear_layers(config, model)
    config.lora_ga_config = LoraGAConfig()
    preprocess_loraga(model, config, gradient)


def _refuse_short(row: Variant, config: Any, model: Any) -> None:
    """Missing singular vectors of a narrow weight raise no error."""
    if config.target_parameters:
        names = ", ".join(sorted(config.target_parameters))
        raise UsageError(
            f"The experts of this model are tensors of three dimensions ({names}), which cannot be trained "
            "here; name its other modules (`targets`), such as q_proj,v_proj."
        )
    ranks = {parameter.shape[0] for name, parameter in model.named_parameters() if "lora_A" in name}
    if ranks - {config.r}:
        raise UsageError(
            f"The variant {row.name} finds only {min(ranks)} singular vectors for the rank {config.r}; use "
            "a lower rank."
        )
