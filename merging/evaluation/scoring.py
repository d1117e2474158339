"""The outputs of a model for prompts: log-likelihoods of answers and losses.

Prompts are read as trees (`merging.evaluation`): instructions and questions that prompts or answers share are
read once. If a model would not give a tree's paths the same as each alone (`merging.model.reading`), every
answer with its question is a row of a batch instead. Several candidates, coefficient vectors of a live stack,
are rows of the same batch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from merging.evaluation.sizing import batch_tokens
from merging.evaluation.trees import TokenTree, pack_prompts, tree_of
from merging.model import LoadedBase, Prompt, Sizes, in_pieces, is_shortage

if TYPE_CHECKING:
    from torch import Tensor

# Tokens that are read of each answer by which the memory of a tree is measured.
_PROBE_ANSWER = 16
# log p of every answer of a prompt.
Likelihoods = tuple[float, ...]
Progress = Callable[[int, int], None]


def likelihoods(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    *,
    width: int | None = None,
    progress: Progress | None = None,
) -> list[Likelihoods]:
    """log p(answer | question) of every answer of every prompt, its closing token included, in nats.

    Trees that do not fit into memory are halved; raises MemoryLimitError if one answer alone does not fit.
    """
    return _likelihoods(base, prompts, None, width, progress)[0]


def candidate_likelihoods(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    candidates: int,
    *,
    width: int | None = None,
    progress: Progress | None = None,
) -> list[list[Likelihoods]]:
    """`likelihoods` for each candidate, where the model treats row k of a batch as candidate k."""
    return _likelihoods(base, prompts, candidates, width, progress)


def greedy_likelihoods(
    base: LoadedBase, prompts: Sequence[Prompt], *, progress: Progress | None = None
) -> list[list[tuple[float, bool]]]:
    """`likelihoods`, each with whether greedy generation from the question would begin with the answer."""
    sums, matches = _likelihoods(base, prompts, None, None, progress, greedy=True)
    return [
        [(value, match > 0) for value, match in zip(*pair, strict=True)]
        for pair in zip(sums, matches, strict=True)
    ]


def _likelihoods(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    candidates: int | None,
    width: int | None,
    progress: Progress | None,
    greedy: bool = False,
) -> list[list[Likelihoods]]:
    """For each candidate, or once without, the likelihoods of all prompts.

    With `greedy` (and no candidates) a second list: 1 for each answer whose tokens are all the most likely.
    """
    import torch

    rows: list[list[Likelihoods]] = [[()] * len(prompts) for _ in range(2 if greedy else candidates or 1)]
    done = 0
    with torch.no_grad():
        groups = reading_groups(base, prompts, width)
        read = lambda group: _split_sums(  # noqa: E731
            base, [prompts[index] for index in group], candidates, greedy
        )
        sizes = Sizes(
            base.memory,
            "reading",
            lambda group: (candidates or 1) * read_tokens(base, [prompts[index] for index in group]),
        )
        for indices, sums in in_pieces(groups, read, lambda index: too_large(prompts[index]), sizes):
            for at, index in enumerate(indices):
                for candidate, values in enumerate(rows):
                    values[index] = tuple(sums[at][candidate].tolist())
            done += len(indices)
            if progress is not None:
                progress(done, len(prompts))
    return rows


def reading_groups(base: LoadedBase, prompts: Sequence[Prompt], width: int | None = None) -> list[list[int]]:
    """Indices of prompts to be read together: trees of at most `width` tokens, then batches of as many.

    A group contains prompts of one way of reading, and at least one prompt.
    """
    width = width or tree_width(base)
    shared = [index for index, prompt in enumerate(prompts) if _in_tree(base, prompt)]
    plain = [index for index, prompt in enumerate(prompts) if not _in_tree(base, prompt)]
    trees = pack_prompts([prompts[index] for index in shared], width)
    padded = batches([prompts[index].length * len(prompts[index].answers) for index in plain], width)
    return [[shared[at] for at in group] for group in trees] + [
        [plain[at] for at in group] for group in padded
    ]


def tree_width(base: LoadedBase) -> int:
    """The number of tokens of the largest trees, and of batches of texts that are read plainly."""
    return batch_tokens(base, "reading", lambda tokens: _read_probe(base, tokens))


def _read_probe(base: LoadedBase, tokens: int) -> object:
    """Reads a tree of that many tokens, almost all of which are predicted."""
    import torch

    vocabulary = base.model.config.get_text_config().vocab_size
    answers = tuple((at % vocabulary, *[0] * _PROBE_ANSWER) for at in range(tokens // _PROBE_ANSWER))
    with torch.no_grad():
        return _tree_sums(base, tree_of([Prompt((0,), answers, 0)]), 1)


def read_tokens(base: LoadedBase, prompts: Sequence[Prompt]) -> int:
    """The number of tokens that the model reads for these prompts: of a tree, and of rows of a batch."""
    shared = [prompt for prompt in prompts if _in_tree(base, prompt)]
    plain = [prompt for prompt in prompts if not _in_tree(base, prompt)]
    rows = sum(len(prompt.answers) for prompt in plain)
    longest = max((prompt.length for prompt in plain), default=0)
    return len(tree_of(shared).tokens) + rows * longest


def too_large(prompt: Prompt) -> str:
    """The message for a prompt that alone does not fit into memory."""
    return (
        f"A prompt of {prompt.length} tokens does not fit into memory; use a device with more, or shorter "
        "examples."
    )


def both_ways(
    base: LoadedBase, prompts: Sequence[Prompt], few: Sequence[int]
) -> tuple[list[float], list[float], list[float]]:
    """log p of every answer of the prompts at `few`: from one tree of all, read alone, and in one batch.

    The first is empty if the model does not accept a tree.
    """
    import torch

    texts = [(prompts[at].question, answer) for at in few for answer in prompts[at].answers]
    with torch.no_grad():
        alone = [float(_text_sums(base, [text], 1)[0, 0]) for text in texts]
        batch: list[float] = _text_sums(base, texts, 1)[:, 0].tolist()
        try:
            sums = _tree_sums(base, tree_of(prompts), 1)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            # The same texts were read before: the model does not accept the tree.
            if is_shortage(error):
                raise
            return [], alone, batch
    return [float(value) for at in few for value in sums[at][0]], alone, batch


def right_answers(prompts: Sequence[Prompt], answers: Sequence[Likelihoods]) -> list[bool]:
    """Whether the most likely answer of every prompt, the first of equals, is the right one."""
    pairs = zip(prompts, answers, strict=True)
    return [max(range(len(row)), key=row.__getitem__) == prompt.right for prompt, row in pairs]


def answer_margins(prompts: Sequence[Prompt], answers: Sequence[Likelihoods]) -> list[float]:
    """log p of the best other answer minus log p of the right one for every prompt, in nats; negative if the
    right one is the most likely. Prompts have at least two answers.
    """
    return [
        max(values[: prompt.right] + values[prompt.right + 1 :]) - values[prompt.right]
        for prompt, values in zip(prompts, answers, strict=True)
    ]


def mean_loss(prompts: Sequence[Prompt], answers: Sequence[Likelihoods]) -> float:
    """The mean over prompts of the right answer's loss a token, in nats, from `likelihoods`."""
    losses_by_prompt = [-values[p.right] / len(p.target) for p, values in zip(prompts, answers, strict=True)]
    return sum(losses_by_prompt) / len(losses_by_prompt)


def targets_only(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with their right answers alone, for losses."""
    return [Prompt(prompt.question, (prompt.target,), 0) for prompt in prompts]


def open_answers(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with their answers without the closing tokens."""
    return [
        Prompt(prompt.question, tuple(answer[:-1] for answer in prompt.answers), prompt.right)
        for prompt in prompts
    ]


def losses(base: LoadedBase, prompts: Sequence[Prompt], candidates: int = 1) -> Tensor:
    """The right answer's loss a token of every prompt, (candidates, prompts) in nats, gradients kept.

    All prompts are read together: the caller chooses how many.
    """
    import torch

    likelihood_sums = _sums(base, targets_only(prompts), None if candidates == 1 else candidates)
    sums = torch.stack([values[:, 0] for values in likelihood_sums], dim=1)
    lengths = torch.tensor([len(prompt.target) for prompt in prompts], device=sums.device)
    return -sums / lengths


def entropies(base: LoadedBase, prompts: Sequence[Prompt], candidates: int = 1) -> Tensor:
    """The entropy among the answers of every prompt, (candidates, prompts) in nats, gradients kept.

    From the answers' likelihoods, normalised to sum to 1; needs no label. All prompts are read together.
    """
    import torch

    entropy_values = []
    for values in _sums(base, prompts, None if candidates == 1 else candidates):
        logs = values.log_softmax(1)
        entropy_values.append(-(logs.exp() * logs).sum(1))
    return torch.stack(entropy_values, dim=1)


def _in_tree(base: LoadedBase, prompt: Prompt) -> bool:
    return prompt.depth <= base.reading.tree_length


def _split_sums(
    base: LoadedBase, prompts: Sequence[Prompt], candidates: int | None, greedy: bool
) -> list[Tensor]:
    """`_sums` for no gradients; the answers of a prompt that does not fit by itself are read in parts."""
    import torch

    if len(prompts) > 1 or len(prompts[0].answers) == 1:
        return _sums(base, prompts, candidates, greedy)
    question, answers = prompts[0].question, prompts[0].answers
    single_answers = [Prompt(question, (answer,), 0) for answer in answers]

    def read(group: Sequence[int]) -> Tensor:
        return _sums(base, [Prompt(question, tuple(answers[at] for at in group), 0)], candidates, greedy)[0]

    parts = in_pieces([range(len(answers))], read, lambda at: too_large(single_answers[at]))
    return [torch.cat([part for _, part in parts], dim=1)]


def _sums(
    base: LoadedBase, prompts: Sequence[Prompt], candidates: int | None, greedy: bool = False
) -> list[Tensor]:
    """For each prompt log p of its answers, (candidates, answers) in float32; (1, answers) without.

    With `greedy` and no candidates (2, answers): the second row is 1 where each token is the most likely.
    """
    flags = [_in_tree(base, prompt) for prompt in prompts]
    if all(flags):
        return _tree_sums(base, tree_of(prompts), candidates or 1, greedy)
    if any(flags):
        parts = {
            flag: iter(_sums(base, [prompts[at] for at in places], candidates, greedy))
            for flag in (True, False)
            for places in [[at for at, own in enumerate(flags) if own is flag]]
        }
        return [next(parts[flag]) for flag in flags]
    return _plain_sums(base, prompts, candidates, greedy)


def _plain_sums(
    base: LoadedBase, prompts: Sequence[Prompt], candidates: int | None, greedy: bool
) -> list[Tensor]:
    """`_sums` of individual texts: one batch of them, or with candidates one after the other."""
    import torch

    texts = [(prompt.question, answer) for prompt in prompts for answer in prompt.answers]
    if candidates is None:
        sums = _text_sums(base, texts, 1, greedy).T
    else:
        sums = torch.cat([_text_sums(base, [text], candidates).T for text in texts], dim=0).T
    return list(sums.split_with_sizes([len(prompt.answers) for prompt in prompts], dim=1))


def _text_sums(
    base: LoadedBase,
    texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    copies: int,
    greedy: bool = False,
) -> Tensor:
    """log p of the answer of each (question, answer), a row of a batch each; one text may have copies.

    (texts, copies); with `greedy` and one copy (texts, 2), as `_sums` has them.

    Rows are padded at their ends, where a causal model does not look.
    """
    import torch

    device = base.device
    read = [[*question, *answer[:-1]] for question, answer in texts]
    longest = max(map(len, read))
    tokens = torch.tensor([row + row[-1:] * (longest - len(row)) for row in read], device=device)
    # Logits from the first that is asked for to the last.
    first = min(len(question) for question, _ in texts) - 1
    logits = base.model(
        input_ids=tokens.expand(max(copies, len(texts)), -1),
        use_cache=False,
        **logit_options(base.model, longest - first),
    ).logits
    logits = logits[:, first - longest :]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    sums = []
    for at, (question, answer) in enumerate(texts):
        rows = slice(at, at + 1) if copies == 1 else slice(None)
        start = len(question) - 1 - first
        own = logits[rows, start : start + len(answer)]
        targets = torch.tensor(answer, device=device).expand(own.shape[0], -1)[..., None]
        text_sums = (own.gather(-1, targets)[..., 0] - own.logsumexp(-1)).sum(1)
        sums.append(torch.cat([text_sums, _is_greedy(own, targets[..., 0]).all(1)]) if greedy else text_sums)
    return torch.stack(sums, dim=0) if copies == 1 else sums[0][:, None]


def logit_options(model: Any, last: int) -> dict[str, Tensor]:
    """The argument for computing only the last logits, if the model supports it.

    As places, since torch multiplies the slice that a number gives as one product for each row, for which it
    copies the output head on a processor.
    """
    import torch

    parameters = inspect.signature(model.forward).parameters
    return {"logits_to_keep": torch.arange(-last, 0)} if "logits_to_keep" in parameters else {}


def _tree_sums(base: LoadedBase, tree: TokenTree, candidates: int, greedy: bool = False) -> list[Tensor]:
    """For each prompt of the tree log p of its answers, (candidates, answers) in float32.

    With `greedy` and one candidate (2, answers), as `_sums` has them.
    """
    import torch

    from merging.evaluation.sparse_attention import SparseAttention

    device = base.device
    tokens = torch.tensor(tree.tokens, device=device).expand(candidates, -1)
    positions = torch.tensor(tree.depths, device=device).expand(candidates, -1)
    visible = tree.attention_mask()
    mask = torch.zeros(visible.shape, dtype=base.dtype, device=device)
    mask.masked_fill_(~torch.from_numpy(visible).to(device), torch.finfo(base.dtype).min)
    pairs = [pair for answers in tree.answers for pair in answers]
    logit_places = sorted({place for places, _ in pairs for place in places})
    at = {place: number for number, place in enumerate(logit_places)}
    # Layers that are computed again for gradients would be so outside the block.
    again = base.memory.checkpointing and torch.is_grad_enabled()
    with contextlib.nullcontext() if again else SparseAttention(visible, mask):
        logits = base.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask[None, None].expand(candidates, 1, -1, -1),
            logits_to_keep=torch.tensor(logit_places, device=device),
            use_cache=False,
        ).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = torch.tensor([at[place] for places, _ in pairs for place in places], device=device)
    targets = torch.tensor([token for _, answer in pairs for token in answer], device=device)
    log_probabilities = logits[:, rows, targets] - logits.logsumexp(-1)[:, rows]
    lengths = [len(answer) for _, answer in pairs]
    answer_sums = torch.stack([part.sum(1) for part in log_probabilities.split_with_sizes(lengths, dim=1)], 1)
    if greedy:
        likely = _is_greedy(logits[:, rows], targets[None]).split_with_sizes(lengths, dim=1)
        answer_sums = torch.cat([answer_sums, torch.stack([part.all(1) for part in likely], 1)])
    return list(answer_sums.split_with_sizes([len(answers) for answers in tree.answers], dim=1))


def _is_greedy(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each target is the most likely token, by logits (..., tokens, vocabulary)."""
    return logits.argmax(-1) == targets


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices by descending length in groups whose padded size stays within the budget."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
