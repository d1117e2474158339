from .documents import Documents
from .export import PageExport, export_page
from .server import create_app, serve_page

__all__ = ["Documents", "PageExport", "create_app", "export_page", "serve_page"]
