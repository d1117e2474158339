"""The crawl: the Hub's client, the admission rules and the crawler."""
