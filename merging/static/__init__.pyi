from . import inspection
from .controls import KINDS, stand_ins
from .costs import price
from .folding import apply_to, refuse_misfits, refuse_unfoldable
from .merger import ModuleReport, carry_out, merge, totals, works, write_updates
from .plans import Plan, plan

__all__ = [
    "KINDS",
    "ModuleReport",
    "Plan",
    "apply_to",
    "carry_out",
    "inspection",
    "merge",
    "plan",
    "price",
    "refuse_misfits",
    "refuse_unfoldable",
    "stand_ins",
    "totals",
    "works",
    "write_updates",
]
