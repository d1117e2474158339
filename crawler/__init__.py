"""How facts arrive: the Hub's client, the admission rules and the crawl."""
