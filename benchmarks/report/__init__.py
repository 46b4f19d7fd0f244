"""Shows a bench record as tables in a terminal, and as one self-contained web page."""
