from .crawler import Crawler, preview_crawl
from .ledger import share_budget
from .options import DEFAULT_BASE, MAX_WEIGHTS, WEIGHTS, CrawlOptions, check_base_name
from .outcomes import CrawlReport, Preview
from .screening import refusing
from .workers import WorkerSettings, WorkReport, work_by_ray, work_for_crawl

__all__ = [
    "DEFAULT_BASE",
    "MAX_WEIGHTS",
    "WEIGHTS",
    "CrawlOptions",
    "CrawlReport",
    "Crawler",
    "Preview",
    "WorkReport",
    "WorkerSettings",
    "check_base_name",
    "preview_crawl",
    "refusing",
    "share_budget",
    "work_by_ray",
    "work_for_crawl",
]
