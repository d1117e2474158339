"""Which engines misread an adapter that PEFT loads: by its ranks and scalings alone.

From the sources of PEFT 0.21, vLLM 0.33, SGLang 0.5.23, llama.cpp, TGI 3.3, LoRAX 0.4 and LMDeploy 0.18.
"""

from __future__ import annotations

from collections.abc import Collection


def misreadings(
    ranks: Collection[int], *, rslora: bool = False, alpha_pattern: bool = False
) -> tuple[str, ...]:
    """Warnings about engines other than PEFT for an adapter whose modules have these ranks, one sentence
    each.

    Empty for one rank that is 8 or a multiple of 16, with the scaling alpha / rank everywhere.
    """
    sentences = []
    low, high = min(ranks, default=0), max(ranks, default=0)
    if low != high:
        sentences.append(
            f"It has ranks from {low} to {high}: llama.cpp scales them wrongly, SGLang and LMDeploy refuse "
            f"them, TGI and LoRAX too within a kind of module; vLLM needs --max-lora-rank {high}."
        )
    elif high != 8 and high % 16:
        sentences.append(
            f"It has rank {high}: TGI and LoRAX scale ranks wrongly that are not 8 or 16 times n."
        )
    if alpha_pattern:
        sentences.append(
            "Some modules have a different alpha: llama.cpp, SGLang, TGI, LoRAX, LMDeploy, and vLLM "
            "before 0.32, scale them wrongly."
        )
    if rslora:
        sentences.append(
            "It is rsLoRA: llama.cpp, SGLang and LMDeploy take alpha / rank and scale it wrongly."
        )
    return tuple(sentences)
