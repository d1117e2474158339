"""The page: documents, routes, exports, and what a browser makes of them."""
