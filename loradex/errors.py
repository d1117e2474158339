"""Every error that a call of loradex raises on purpose; `LoradexError` is the class of them all."""

from __future__ import annotations

from catalog.errors import CatalogBusyError as CatalogBusyError
from catalog.errors import CatalogError as CatalogError
from catalog.errors import ConfigError as ConfigError
from catalog.errors import CursorExpiredError as CursorExpiredError
from catalog.errors import DamagedFileError as DamagedFileError
from catalog.errors import DivergedError as DivergedError
from catalog.errors import EncoderError as EncoderError
from catalog.errors import EvaluationError as EvaluationError
from catalog.errors import HubAccessError as HubAccessError
from catalog.errors import HubBusyError as HubBusyError
from catalog.errors import HubError as HubError
from catalog.errors import HubPayloadError as HubPayloadError
from catalog.errors import HubUnreachableError as HubUnreachableError
from catalog.errors import IntegrityError as IntegrityError
from catalog.errors import LoradexError as LoradexError
from catalog.errors import MemoryLimitError as MemoryLimitError
from catalog.errors import MergeError as MergeError
from catalog.errors import NoCatalogError as NoCatalogError
from catalog.errors import NotFoundError as NotFoundError
from catalog.errors import PoolError as PoolError
from catalog.errors import ProcessLostError as ProcessLostError
from catalog.errors import ReadOnlyCatalogError as ReadOnlyCatalogError
from catalog.errors import SchemaVersionError as SchemaVersionError
from catalog.errors import StorageError as StorageError
from catalog.errors import UnreadableError as UnreadableError
from catalog.errors import UsageError as UsageError
from catalog.errors import WeightsError as WeightsError
