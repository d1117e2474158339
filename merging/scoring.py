"""What a model makes of prompts: log-likelihoods of answers, losses, generated text.

Prompts are read as trees (`merging.tree`): instructions and questions that prompts or answers share are read
once. Several candidates, coefficient vectors of a live stack, are rows of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from catalog.errors import EvaluationError
from merging.model import BaseModel, quiet
from merging.prompt import Prompt
from merging.tree import Tree, packed, tree_of

if TYPE_CHECKING:
    from torch import Tensor

# Tokens of one tree. Attention costs their square, so that a longer one saves nothing on a CPU.
WIDTH = {"cpu": 512, "cuda": 4096}
MOST_NEW_TOKENS = 30
# log p of every answer of a prompt.
Likelihoods = tuple[float, ...]
Progress = Callable[[int, int], None]


def likelihoods(
    base: BaseModel,
    prompts: Sequence[Prompt],
    *,
    width: int | None = None,
    progress: Progress | None = None,
) -> list[Likelihoods]:
    """log p(answer | question) of every answer of every prompt, its closing token included, in nats.

    Where memory does not suffice trees are halved until it does; raises EvaluationError when one prompt
    alone does not fit.
    """
    return candidate_likelihoods(base, prompts, 1, width=width, progress=progress)[0]


def candidate_likelihoods(
    base: BaseModel,
    prompts: Sequence[Prompt],
    candidates: int,
    *,
    width: int | None = None,
    progress: Progress | None = None,
) -> list[list[Likelihoods]]:
    """`likelihoods` for each candidate, where the model treats row k of a batch as candidate k."""
    import torch

    found: list[list[Likelihoods]] = [[()] * len(prompts) for _ in range(candidates)]
    done = 0
    with torch.no_grad():
        for indices, sums in _over_trees(base, prompts, candidates, width):
            for at, index in enumerate(indices):
                for candidate in range(candidates):
                    found[candidate][index] = tuple(sums[at][candidate].tolist())
            done += len(indices)
            if progress is not None:
                progress(done, len(prompts))
    return found


def chosen(found: Sequence[Likelihoods]) -> list[int]:
    """The most likely answer of every prompt; the first of equals."""
    return [max(range(len(values)), key=values.__getitem__) for values in found]


def accuracy(prompts: Sequence[Prompt], found: Sequence[Likelihoods]) -> float:
    """The share of prompts whose most likely answer is the right one."""
    hits = [pick == prompt.right for prompt, pick in zip(prompts, chosen(found), strict=True)]
    return sum(hits) / len(hits)


def mean_loss(prompts: Sequence[Prompt], found: Sequence[Likelihoods]) -> float:
    """The mean over prompts of the right answer's loss a token, in nats, from `likelihoods`."""
    each = [-values[p.right] / len(p.target) for p, values in zip(prompts, found, strict=True)]
    return sum(each) / len(each)


def targets_only(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with their right answers alone, for losses."""
    return [Prompt(prompt.question, (prompt.target,), 0) for prompt in prompts]


def losses(base: BaseModel, prompts: Sequence[Prompt], candidates: int = 1) -> Tensor:
    """The right answer's loss a token of every prompt, (candidates, prompts) in nats, gradients kept.

    All prompts are read in one tree: the caller chooses how many.
    """
    import torch

    tree = tree_of(targets_only(prompts))
    sums = torch.stack([values[:, 0] for values in _sums(base, tree, candidates)], dim=1)
    lengths = torch.tensor([len(prompt.target) for prompt in prompts], device=sums.device)
    return -sums / lengths


def entropies(base: BaseModel, prompts: Sequence[Prompt], candidates: int = 1) -> Tensor:
    """The entropy among the answers of every prompt, (candidates, prompts) in nats, gradients kept.

    From the answers' likelihoods, normalised to sum to 1; needs no label. All prompts are read in one tree.
    """
    import torch

    found = []
    for values in _sums(base, tree_of(prompts), candidates):
        logs = values.log_softmax(1)
        found.append(-(logs.exp() * logs).sum(1))
    return torch.stack(found, dim=1)


def generate(
    base: BaseModel,
    prompts: Sequence[Prompt],
    *,
    most: int = MOST_NEW_TOKENS,
    progress: Progress | None = None,
) -> list[str]:
    """The greedy answer to every question, at most `most` tokens, special tokens left out."""
    import torch
    from transformers import GenerationConfig

    pad = base.tokenizer.pad_token_id
    pad = base.tokenizer.eos_token_id if pad is None else pad
    # Chat models may end their turn by another token than the tokenizer's end of sequence.
    own = base.model.generation_config.eos_token_id
    ends = {base.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())}
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=most, eos_token_id=sorted(ends), pad_token_id=pad
    )
    texts = [""] * len(prompts)
    budget = WIDTH.get(base.device.type, WIDTH["cpu"]) * 4
    for indices in _batches([len(prompt.question) + most for prompt in prompts], budget):
        questions = [list(prompts[index].question) for index in indices]
        longest = max(map(len, questions))
        tokens = torch.tensor([[pad] * (longest - len(q)) + q for q in questions], device=base.device)
        mask = torch.tensor([[0] * (longest - len(q)) + [1] * len(q) for q in questions], device=base.device)
        with torch.no_grad(), quiet():
            out = base.model.generate(tokens, attention_mask=mask, generation_config=settings)
        for index, row in zip(indices, out[:, longest:], strict=True):
            texts[index] = base.tokenizer.decode(row, skip_special_tokens=True).strip()
    return texts


def _over_trees(
    base: BaseModel, prompts: Sequence[Prompt], candidates: int, width: int | None
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """The indices of each tree with their sums; a tree that does not fit into memory is halved."""
    import torch

    waiting = packed(prompts, width or WIDTH.get(base.device.type, WIDTH["cpu"]))[::-1]
    while waiting:
        indices = waiting.pop()
        try:
            sums = _sums(base, tree_of(prompts[index] for index in indices), candidates)
        except torch.OutOfMemoryError as error:
            if len(indices) == 1:
                raise EvaluationError(
                    f"A prompt of {prompts[indices[0]].length} tokens does not fit into memory; use a device "
                    "with more, or shorter examples."
                ) from error
            half = len(indices) // 2
            waiting += [indices[half:], indices[:half]]
            continue
        yield indices, sums


def _sums(base: BaseModel, tree: Tree, candidates: int) -> list[Tensor]:
    """For each prompt of the tree log p of its answers, (candidates, answers) in float32."""
    import torch

    device = base.device
    tokens = torch.tensor(tree.tokens, device=device).expand(candidates, -1)
    positions = torch.tensor(tree.depths, device=device).expand(candidates, -1)
    seen = torch.from_numpy(tree.seen()).to(device)
    mask = torch.zeros(seen.shape, dtype=base.dtype, device=device)
    mask.masked_fill_(~seen, torch.finfo(base.dtype).min)
    pairs = [pair for answers in tree.answers for pair in answers]
    kept = sorted({place for places, _ in pairs for place in places})
    at = {place: number for number, place in enumerate(kept)}
    logits = base.model(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=mask[None, None].expand(candidates, 1, -1, -1),
        logits_to_keep=torch.tensor(kept, device=device),
        use_cache=False,
    ).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = torch.tensor([at[place] for places, _ in pairs for place in places], device=device)
    wanted = torch.tensor([token for _, answer in pairs for token in answer], device=device)
    each = logits[:, rows, wanted] - logits.logsumexp(-1)[:, rows]
    whole = torch.stack(
        [part.sum(1) for part in each.split_with_sizes([len(answer) for _, answer in pairs], dim=1)], 1
    )
    return list(whole.split_with_sizes([len(answers) for answers in tree.answers], dim=1))


def _batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices by descending length in groups whose padded size stays within the budget."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
