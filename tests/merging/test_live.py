"""Members over one base model: equal to folded weights and to PEFT, and the base stays as it is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from catalog.errors import MergeError, UsageError, WeightsError
from merging.live.stack import LiveStack, Way
from merging.members import MergeMember
from tests.merging.adapters import deltas, total

pytest.importorskip("transformers")
from tests.merging.llama import mixed, tiny, tokens, write
from tests.merging.tiny import PRODUCT_FLOPS

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
WEIGHTS = (0.7, -0.4, 1.3, 0.5)
WAYS: tuple[Way, ...] = ("cheapest", "factored", "folded")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def members(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[MergeMember]:
    return mixed(tmp_path_factory.mktemp("members"), model)


@pytest.fixture(autouse=True)
def unchanged(model: Any) -> Iterator[None]:
    """After every test the shared base has the bits, the parameters and the methods that it had before."""
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not any("forward" in module.__dict__ for module in model.modules())


def plus(model: Any, updates: Mapping[str, Tensor]) -> Any:
    """A copy of the model with updates added to its weights."""
    other = copy.deepcopy(model)
    for name, update in updates.items():
        weight = other.get_submodule(name).weight
        weight.copy_((weight.double() + update).to(weight.dtype))
    return other


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens() if ids is None else ids).logits
    return result


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether logits agree, relative to the largest of them."""
    return float((left - right).abs().max()) <= tolerance * float(right.abs().max())


def flops(model: Any, ids: Tensor) -> int:
    with FlopCounterMode(display=False, custom_mapping=PRODUCT_FLOPS) as counter:
        logits(model, ids)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("way", WAYS)
def test_the_live_model_is_the_model_with_summed_weights(
    way: Way, model: Any, members: list[MergeMember]
) -> None:
    live = LiveStack(model, members, way=way)
    expected = logits(plus(model, total(WEIGHTS, [member.folder for member in members])))
    with live.attach():
        live.set_scales(live.scales_of(WEIGHTS))
        assert close(logits(model), expected)
    assert not close(logits(model), expected, 0.1)


def test_without_scales_every_member_counts_once(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    with live.attach():
        result = logits(model)
    assert close(result, logits(plus(model, total([1] * 4, [member.folder for member in members]))))


@OLD_NAME
def test_each_member_alone_is_what_peft_loads(model: Any, members: list[MergeMember]) -> None:
    peft = pytest.importorskip("peft")
    live = LiveStack(model, members)
    for number, member in enumerate(members):
        judge = peft.PeftModel.from_pretrained(copy.deepcopy(model), member.folder).eval()
        with live.attach():
            live.set_scales(live.scales_of([float(n == number) for n in range(4)]))
            assert close(logits(model), logits(judge))


@OLD_NAME
def test_the_weighted_sum_is_what_peft_concatenates(model: Any, members: list[MergeMember]) -> None:
    peft = pytest.importorskip("peft")
    plain = [members[n] for n in (0, 2, 3)]  # PEFT overscales what rsLoRA it concatenates
    judge = peft.PeftModel.from_pretrained(copy.deepcopy(model), plain[0].folder, adapter_name="m0")
    for n, member in enumerate(plain[1:], 1):
        judge.load_adapter(member.folder, f"m{n}")
    judge.add_weighted_adapter(["m0", "m1", "m2"], [0.7, 0.2, 1.3], "sum", combination_type="cat")
    judge.set_adapter("sum")
    live = LiveStack(model, plain)
    with live.attach():
        live.set_scales(live.scales_of([0.7, 0.2, 1.3]))
        assert close(logits(model), logits(judge.eval()))


def test_two_by_two_by_hand(tmp_path: Path) -> None:
    # W = [[1, 2], [3, 4]]; A = [[1, 1], [1, -1]], B = [[1, 0], [2, 1]], alpha = r, so that the scaling is 1.
    # x = (1, 2): W x = (5, 11), A x = (3, -1); s = (2, 10): s A x = (6, -10), B (s A x) = (6, 2);
    # y = (11, 13).
    base = nn.ModuleDict({"q_proj": nn.Linear(2, 2, bias=False)}).requires_grad_(False)
    base["q_proj"].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    member = write(tmp_path / "m", base, 0, rank=2, targets=["q_proj"], lora_alpha=2)
    for way in WAYS:
        live = LiveStack(base, [member], way=way)
        live.factors["q_proj"][0].copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        live.factors["q_proj"][1].copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        live.set_scales({"q_proj": torch.tensor([2.0, 10.0])})
        with live.attach():
            assert base["q_proj"](torch.tensor([[1.0, 2.0]])).tolist() == [[11.0, 13.0]]
        assert base["q_proj"](torch.tensor([[1.0, 2.0]])).tolist() == [[5.0, 11.0]]


@pytest.mark.parametrize("way", WAYS)
def test_candidates_in_one_batch_are_what_each_is_alone(
    way: Way, model: Any, members: list[MergeMember]
) -> None:
    live = LiveStack(model, members, way=way)
    generator = torch.Generator().manual_seed(0)
    candidates = [
        {shape.name: torch.randn(shape.total, generator=generator) for shape in live.shapes} for _ in range(3)
    ]
    candidates[1] = live.scales_of([0, 1, 0, 0])
    rows, ids = torch.tensor([2, 0, 1, 2, 0]), tokens(5)
    with live.attach():
        live.set_scales({name: torch.stack([c[name] for c in candidates]) for name in candidates[0]}, rows)
        together = logits(model, ids)
        for number, candidate in enumerate(candidates):
            live.set_scales(candidate)
            assert close(together[rows == number], logits(model, ids[rows == number]))


class Block(nn.Module):
    """A gated layer in float64 throughout, which Llama's own norms are not."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(5, 7), nn.Linear(5, 7, bias=False)
        self.down_proj = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self.gate_proj(x).tanh() * self.up_proj(x))
        return result


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_scales_are_finite_differences(way: Way, count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = Block().double().requires_grad_(False)
    members = [write(tmp_path / f"m{n}", block, n, rank=n + 1, size=1.0) for n in range(3)]
    live = LiveStack(block, members, way=way)
    x = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    scales = [value.clone().requires_grad_() for value in live.scales_of([0.7, 0, 1.3]).values()]

    def run(x: Tensor, *scales: Tensor) -> Tensor:
        live.set_scales({shape.name: value for shape, value in zip(live.shapes, scales, strict=True)})
        result: Tensor = block(x).sum(0)
        return result

    with live.attach():
        assert torch.autograd.gradcheck(run, (x, *scales))


@pytest.mark.parametrize("length", [2, 60])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_scales_are_those_of_the_weights_along_each_rank(
    way: Way, length: int, model: Any, members: list[MergeMember]
) -> None:
    live, ids = LiveStack(model, members, way=way), tokens(2, length)
    scales = {name: value.float().requires_grad_() for name, value in live.scales_of(WEIGHTS).items()}
    with live.attach():
        live.set_scales(scales)
        model(ids).logits.sin().sum().backward()
    judge = plus(model, total(WEIGHTS, [member.folder for member in members])).requires_grad_(True)
    judge(ids).logits.sin().sum().backward()
    for name, (a, bt) in live.factors.items():
        expected = ((bt @ judge.get_submodule(name).weight.grad) * a).sum(1)
        assert close(scales[name].grad, expected, 1e-3)


def test_gradients_reach_nothing_but_the_scales(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    scales = {name: value.float().requires_grad_() for name, value in live.scales_of([0] * 4).items()}
    with live.attach():
        live.set_scales(scales)
        model(tokens()).logits.square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in scales.values())
    assert not any(a.requires_grad or bt.requires_grad for a, bt in live.factors.values())


def test_candidates_have_gradients_of_their_own(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    scales = {
        name: torch.stack([value.float(), 2 * value.float()]).requires_grad_()
        for name, value in live.scales_of(WEIGHTS).items()
    }
    with live.attach():
        live.set_scales(scales, torch.tensor([0, 0, 0]))
        model(tokens()).logits.square().sum().backward()
    for value in scales.values():
        assert value.grad is not None
        assert bool(value.grad[0].any())
        assert not bool(value.grad[1].any())


def test_a_base_that_trains_keeps_its_gradients(members: list[MergeMember]) -> None:
    base = tiny().requires_grad_(True)
    live = LiveStack(base, members, way="folded")
    with live.attach():
        base(tokens()).logits.square().sum().backward()
    result = [parameter.grad.clone() for parameter in base.parameters()]
    summed = plus(tiny(), total([1] * 4, [member.folder for member in members])).requires_grad_(True)
    summed(tokens()).logits.square().sum().backward()
    for item, other in zip(result, summed.parameters(), strict=True):
        assert close(item, other.grad, 1e-4)


def test_factors_train_where_that_is_asked_for(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members[:1], train_factors=True)
    name = "model.layers.0.mlp.up_proj"
    with live.attach():
        model(tokens()).logits.square().sum().backward()
    a, bt = live.factors[name]
    judge = plus(model, deltas(members[0].folder)).requires_grad_(True)
    judge(tokens()).logits.square().sum().backward()
    of_weight = judge.get_submodule(name).weight.grad
    assert a.grad is not None
    assert bt.grad is not None
    assert close(a.grad, bt.detach() @ of_weight, 1e-4)
    assert close(bt.grad, a.detach() @ of_weight.T, 1e-4)


def test_dense_weights_give_the_same_and_are_gone_afterwards(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    expected = logits(plus(model, total(WEIGHTS, [member.folder for member in members])))
    plain = logits(model)
    with live.dense(live.scales_of(WEIGHTS)):
        assert close(logits(model), expected)
    assert torch.equal(logits(model), plain)


def test_dense_inside_attached_adds_nothing_twice(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    with live.attach():
        live.set_scales(live.scales_of([0, 1, 0, 0]))
        before = logits(model)
        with live.dense(live.scales_of(WEIGHTS)):
            dense = logits(model)
        assert torch.equal(logits(model), before)
    assert close(dense, logits(plus(model, total(WEIGHTS, [member.folder for member in members]))))


@pytest.mark.parametrize("context", ["attached", "dense"])
def test_an_error_inside_leaves_the_base_as_it_was(
    context: str, model: Any, members: list[MergeMember]
) -> None:
    live = LiveStack(model, members)
    plain = logits(model)

    def fails() -> None:
        with live.attach() if context == "attached" else live.dense(live.scales_of(WEIGHTS)):
            assert not close(logits(model), plain, 0.1)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fails()
    assert torch.equal(logits(model), plain)


def test_dense_sums_are_rounded_once(tmp_path: Path) -> None:
    half = tiny().to(torch.bfloat16)
    member = write(tmp_path / "m", half, 0, dtype=torch.bfloat16)
    before = copy.deepcopy(half)
    live = LiveStack(half, [member])
    weights = {name: half.get_submodule(name).weight for name in deltas(member.folder)}
    with live.dense(live.scales_of([0.37])):
        for name, (a, bt) in live.factors.items():
            exact = weights[name].double() + 0.37 * bt.T.double() @ a.double()
            same = half.get_submodule(name).weight == exact.to(torch.bfloat16)
            assert float(same.double().mean()) > 0.998  # but where float32 falls on the other side of a tie
    for (name, old), new in zip(before.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_half_precision_is_near_the_exact_sum(tmp_path: Path) -> None:
    half = tiny().to(torch.bfloat16)
    member = write(tmp_path / "m", half, 0, dtype=torch.bfloat16)
    live = LiveStack(half, [member], way="folded")
    assert {part.dtype for pair in live.factors.values() for part in pair} == {torch.bfloat16}
    with live.attach():
        result = logits(half).float()
    exact = logits(plus(half.float(), deltas(member.folder)))
    assert close(result, exact, 0.1)


def test_factors_may_be_wider_than_the_base(tmp_path: Path) -> None:
    half = tiny().to(torch.bfloat16)
    member = write(tmp_path / "m", half, 0)
    live = LiveStack(half, [member], dtype=torch.float32)
    with live.attach():
        result = logits(half)
    assert result.dtype == torch.bfloat16
    assert close(result.float(), logits(plus(half.float(), deltas(member.folder))), 0.1)


def test_autocast_changes_the_precision_and_nothing_else(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    with live.attach():
        live.set_scales(live.scales_of(WEIGHTS))
        exact = logits(model)
        with torch.autocast("cpu", torch.bfloat16):
            result = logits(model)
            live.way = "folded"  # sums of weights in bfloat16 would lose small updates
            assert torch.equal(logits(model), result)
    assert close(result.float(), exact, 0.15)


def test_a_gate_multiplies_the_scales(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    requests = {}

    def gate(name: str, x: Tensor, h: Tensor) -> Tensor:
        requests[name] = (x.shape, h.shape)
        return torch.full(h.shape, 2.0)

    live.set_scales(live.scales_of(WEIGHTS))
    with live.attach(gate):
        result = logits(model)
    live.set_scales(live.scales_of([2 * weight for weight in WEIGHTS]))
    with live.attach():
        assert close(result, logits(model))
    assert requests["model.layers.0.mlp.down_proj"] == ((3, 7, 48), (3, 7, 9))
    assert set(requests) == {shape.name for shape in live.shapes}


def test_a_gate_chooses_token_by_token_among_all_members(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    name, ids = "lm_head", tokens()
    a, bt = live.factors[name]
    selected = torch.rand(3, 7, 1, generator=torch.Generator().manual_seed(0)).round()
    live.set_scales({name: torch.ones(4)})
    states = []

    def gate(_: str, x: Tensor, h: Tensor) -> Tensor:
        states.append(x)
        return selected.expand_as(h)

    with live.attach(gate):
        result = logits(model, ids)
    expected = logits(model, ids) + selected * (states[0] @ a.T @ bt)
    assert close(result, expected)
    live.set_scales(live.scales_of([0] * 4))
    with live.attach(gate):
        live.set_scales(live.scales_of([0] * 4))
        logits(model, ids)
    assert len(states) == 1 + len(live.shapes)


def test_gradients_pass_through_a_gate(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    strength = torch.tensor(1.0, requires_grad=True)
    with live.attach(lambda name, x, h: strength):
        model(tokens()).logits.square().sum().backward()
    assert strength.grad is not None
    assert bool(strength.grad)


def test_absent_members_cost_nothing(model: Any, members: list[MergeMember]) -> None:
    ids, live, alone = tokens(), LiveStack(model, members, way="factored"), LiveStack(model, members[1:2])
    alone.way = "factored"
    with live.attach():
        live.set_scales(live.scales_of([0, 0.5, 0, 0]))
        item = flops(model, ids)
        live.set_scales(live.scales_of([0, 0, 0, 0]))
        none = flops(model, ids)
    with alone.attach():
        assert item == flops(model, ids)
    assert none == flops(model, ids) < item


def test_the_cheapest_way_is_no_dearer_than_either(model: Any, members: list[MergeMember]) -> None:
    for length in (1, 4, 12, 60):
        costs = {}
        for way in WAYS:
            live = LiveStack(model, members, way=way)
            with live.attach():
                costs[way] = flops(model, tokens(3, length))
        assert costs["cheapest"] <= min(costs["factored"], costs["folded"])
    assert costs["folded"] < costs["factored"]


def test_the_crossover_is_where_operations_are_equal(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members, way="factored")
    costs = {}
    for length in (4, 8):
        with live.attach():
            costs[length] = flops(model, tokens(1, length))
        costs[length] -= flops(model, tokens(1, length))
    values = (costs[8] - costs[4]) / 4
    with (
        FlopCounterMode(display=False, custom_mapping=PRODUCT_FLOPS) as counter,
        live.dense(live.scales_of([1] * 4)),
    ):
        pass
    assert counter.get_total_flops() == pytest.approx(values * live.crossover)
    assert live.worthwhile(int(live.crossover) + 1)
    assert not live.worthwhile(int(live.crossover))


def test_embeddings_are_looked_up(tmp_path: Path) -> None:
    base = tiny(tie_word_embeddings=True)
    member = write(tmp_path / "m", base, 0, targets=["embed_tokens", "q_proj"])
    parted = copy.deepcopy(base)
    parted.lm_head.weight = nn.Parameter(parted.lm_head.weight.clone(), requires_grad=False)
    updates = deltas(member.folder)
    updates["model.embed_tokens"] = updates["model.embed_tokens"].T
    expected = logits(plus(parted, {name: 0.5 * update for name, update in updates.items()}))
    live = LiveStack(base, [member])
    with live.attach():
        live.set_scales(live.scales_of([0.5]))
        assert close(logits(base), expected)
    with live.dense(live.scales_of([0.5])):
        assert close(logits(base), expected)
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_other_members_take_their_place(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members[1:2])
    with live.attach():
        for member in (members[3], members[0], members[1]):
            live.swap([member])
            assert live.members == (member,)
            assert close(logits(model), logits(plus(model, deltas(member.folder))))


def added_logits(model: Any, groups: Sequence[Sequence[MergeMember]]) -> list[Tensor]:
    return [
        logits(plus(model, total([1] * len(group), [member.folder for member in group]))) for group in groups
    ]


def test_a_sweep_shows_each_group_and_skips_what_is_broken(
    model: Any, members: list[MergeMember], tmp_path: Path
) -> None:
    broken = write(tmp_path / "broken", model, 9)
    broken.weights.write_bytes(broken.weights.read_bytes()[:-100])
    foreign = write(tmp_path / "foreign", tiny(hidden_size=16), 9)
    groups = [[members[0]], [broken], [members[2], members[3]], [foreign], [members[1]]]
    good = added_logits(model, [groups[0], groups[2], groups[4]])
    live = LiveStack(model, members)
    result, errors = [], []
    with live.attach():
        for group, error in live.sweep(groups):
            errors.append(type(error))
            if error is None:
                assert list(live.members) == list(group)
                result.append(logits(model))
    assert errors == [type(None), WeightsError, type(None), MergeError, type(None)]
    assert all(close(item, other) for item, other in zip(result, good, strict=True))


def test_twice_is_the_same_to_the_bit(model: Any, members: list[MergeMember]) -> None:
    result = []
    for _ in range(2):
        live = LiveStack(model, members)
        with live.attach():
            live.set_scales(live.scales_of(WEIGHTS))
            result.append(logits(model))
    assert torch.equal(*result)


def test_what_does_not_fit_the_base_is_named(members: list[MergeMember], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="is 32 to 64 in m3 and 16 to 64 in the base model"):
        LiveStack(tiny(hidden_size=16), members)
    with pytest.raises(MergeError, match=r"no module model.layers.1.mlp.down_proj; m0 belongs to another"):
        LiveStack(tiny(num_hidden_layers=1), members)
    odd = nn.ModuleDict({"q_proj": nn.Conv1d(2, 2, 1)})
    member = write(tmp_path / "odd", nn.ModuleDict({"q_proj": nn.Linear(2, 2)}), 0, targets=["q_proj"])
    with pytest.raises(MergeError, match="q_proj of the base model is a Conv1d"):
        LiveStack(odd, [member])


def test_weights_in_another_form_are_live_and_not_dense(tmp_path: Path) -> None:
    class Packed(nn.Linear):
        """A layer that keeps its weights as bytes."""

        def __init__(self) -> None:
            super().__init__(2, 2, bias=False)
            self.weight = nn.Parameter(torch.ones(4, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.view(2, 2).to(x.dtype)

    base = nn.ModuleDict({"q_proj": Packed()})
    member = write(tmp_path / "m", nn.ModuleDict({"q_proj": nn.Linear(2, 2)}), 0, targets=["q_proj"])
    live = LiveStack(base, [member], dtype=torch.float32, way="folded")
    x = torch.tensor([[1.0, 2.0]])
    with live.attach():
        result = base["q_proj"](x)
    assert close(result, x @ torch.ones(2, 2) + x @ deltas(member.folder)["q_proj"].T.float())
    with pytest.raises(MergeError, match="load the base model unquantised"), live.dense(live.scales_of([1])):
        pass


def test_what_makes_no_sense_is_refused(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    right = live.scales_of(WEIGHTS)
    several = {name: torch.stack([value, value]) for name, value in right.items()}
    wrong: list[tuple[Any, Any, str]] = [
        ({"model.norm": torch.ones(3)}, None, "No member has a module model.norm"),
        ({"lm_head": torch.ones(3)}, None, r"lm_head have shape \[3\], not \[4\]"),
        (several, None, r"not \[\d+\]"),
        (right, torch.tensor([0]), "have shape"),
        (several, torch.tensor([0, 2]), "A row uses the set of scales 2, but there are 2 sets"),
        (several, torch.tensor([0.0, 1.0]), "must be a vector of integers"),
        ({}, torch.tensor([0]), "there are 0 sets"),
    ]
    for scales, rows, message in wrong:
        with pytest.raises(UsageError, match=message):
            live.set_scales(scales, rows)
    with pytest.raises(UsageError, match="4 members require as many weights, not 3"):
        live.scales_of([1, 2, 3])
    with live.attach():
        live.set_scales(several, torch.tensor([0, 1]))
        with pytest.raises(UsageError, match="a batch of 3 rows, but scales for 2"):
            logits(model)
        with pytest.raises(UsageError, match="already attached"), live.attach():
            pass
        live.set_scales(right)


def test_a_layer_that_somebody_else_wraps_stays_wrapped(members: list[MergeMember]) -> None:
    base = tiny()
    layer, calls = base.get_submodule("model.layers.0.self_attn.q_proj"), []
    inner = layer.forward

    def wrapped(x: Tensor) -> Tensor:
        calls.append(1)
        return inner(x)

    layer.forward = wrapped
    expected = logits(plus(tiny(), total([1] * 4, [member.folder for member in members])))
    with LiveStack(base, members, way="folded").attach():
        assert close(logits(base), expected)
    assert layer.forward is wrapped
    assert len(calls) == 1


def test_factors_are_views_of_one_buffer_for_each_data_type(model: Any, members: list[MergeMember]) -> None:
    live = LiveStack(model, members)
    storages = {part.untyped_storage().data_ptr() for pair in live.factors.values() for part in pair}
    assert len(storages) == 1
    parts = [part for pair in live.factors.values() for part in pair]
    assert all(part.storage_offset() * part.itemsize % 256 == 0 for part in parts)
    trained = LiveStack(model, members, train_factors=True)
    a, bt = next(iter(trained.factors.values()))
    assert a.is_leaf
    assert bt.requires_grad


def test_quantised_layers_are_never_copied(model: Any, members: list[MergeMember]) -> None:
    model = copy.deepcopy(model)
    live = LiveStack(model, members)
    assert live.worthwhile(1 << 40)
    # As bitsandbytes stores it: bytes in place of the matrix.
    site = next(iter(live._sites.values()))
    site.weight = torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.uint8), requires_grad=False)
    assert not live.worthwhile(1 << 40)
    assert next(iter(LiveStack(model, members).factors.values()))[0].dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_what_the_processor_does(
    dtype: torch.dtype, model: Any, members: list[MergeMember]
) -> None:
    expected = logits(plus(model, total(WEIGHTS, [member.folder for member in members])))
    target = copy.deepcopy(model).to("cuda", dtype)
    live = LiveStack(target, members)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    scales, ids = live.scales_of(WEIGHTS), tokens().cuda()
    contexts: list[contextlib.AbstractContextManager[Any]] = [live.dense(scales), live.attach()]
    live.set_scales(scales)
    for context in contexts:
        with context:
            assert close(logits(target, ids).float().cpu(), expected, tolerance)
