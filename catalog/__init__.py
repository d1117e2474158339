"""What is known about adapters, and how to ask for it. No network, no terminal."""
