"""loradex: crawl, verify, screen, index, select and merge the LoRA adapters of a base model."""
