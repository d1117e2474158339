from .crawler import Crawler, preview_crawl
from .options import DEFAULT_BASE, MAX_WEIGHTS, WEIGHTS, CrawlOptions, check_base_name
from .outcomes import CrawlReport, Preview
from .screening import RULE_SETS, RULES, Reason, refusing

__all__ = [
    "DEFAULT_BASE",
    "MAX_WEIGHTS",
    "RULES",
    "RULE_SETS",
    "WEIGHTS",
    "CrawlOptions",
    "CrawlReport",
    "Crawler",
    "Preview",
    "Reason",
    "check_base_name",
    "preview_crawl",
    "refusing",
]
