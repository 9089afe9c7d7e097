"""What a compiled program costs, and what a chip can do."""
