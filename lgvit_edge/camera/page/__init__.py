"""The live page: a small server, and the page it shows."""
