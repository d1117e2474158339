from .peft_layers import PeftAdapter, apply_member, apply_with_peft, calm, restore_model
from .resident import layer
from .routing import ArrowGate, prototypes
from .stack import LiveStack

__all__ = [
    "ArrowGate",
    "LiveStack",
    "PeftAdapter",
    "apply_member",
    "apply_with_peft",
    "calm",
    "layer",
    "prototypes",
    "restore_model",
]
