from . import inspection
from .controls import KINDS, stand_ins
from .costs import Price, price
from .folding import FoldReport, apply_to, apply_whole, refuse_misfits, refuse_unfoldable
from .gguf_adapter import GGUF_NAME, GgufBase, GgufLayout, add_gguf, gguf_base, gguf_layout, write_gguf
from .inspection import Inspection
from .merger import MergeReport, ModuleReport, carry_out, merged_updates, totals, works, write_updates
from .normalising import NORMALISE_RECORD, NormaliseReport, normalise
from .plans import Plan, plan

__all__ = [
    "GGUF_NAME",
    "KINDS",
    "NORMALISE_RECORD",
    "FoldReport",
    "GgufBase",
    "GgufLayout",
    "Inspection",
    "MergeReport",
    "ModuleReport",
    "NormaliseReport",
    "Plan",
    "Price",
    "add_gguf",
    "apply_to",
    "apply_whole",
    "carry_out",
    "gguf_base",
    "gguf_layout",
    "inspection",
    "merged_updates",
    "normalise",
    "plan",
    "price",
    "refuse_misfits",
    "refuse_unfoldable",
    "stand_ins",
    "totals",
    "works",
    "write_gguf",
    "write_updates",
]
