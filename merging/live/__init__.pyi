from .resident import layer
from .routing import ArrowGate, prototypes
from .stack import LiveStack

__all__ = ["ArrowGate", "LiveStack", "layer", "prototypes"]
