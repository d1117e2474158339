from . import inspection
from .controls import KINDS, stand_ins
from .costs import Price, price
from .folding import FoldReport, apply_to, refuse_misfits, refuse_unfoldable
from .inspection import Inspection
from .merger import MergeReport, ModuleReport, carry_out, merged_updates, totals, works, write_updates
from .plans import Plan, plan

__all__ = [
    "KINDS",
    "FoldReport",
    "Inspection",
    "MergeReport",
    "ModuleReport",
    "Plan",
    "Price",
    "apply_to",
    "carry_out",
    "inspection",
    "merged_updates",
    "plan",
    "price",
    "refuse_misfits",
    "refuse_unfoldable",
    "stand_ins",
    "totals",
    "works",
    "write_updates",
]
