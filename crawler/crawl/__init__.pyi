from .crawler import Crawler, preview_crawl
from .options import DEFAULT_BASE, WEIGHTS, CrawlOptions, check_base_name
from .screening import RULE_SETS, RULES, Reason, refusing

__all__ = [
    "DEFAULT_BASE",
    "RULES",
    "RULE_SETS",
    "WEIGHTS",
    "CrawlOptions",
    "Crawler",
    "Reason",
    "check_base_name",
    "preview_crawl",
    "refusing",
]
