"""Report about this device: its steps, their results, and a page for an issue."""
