"""Where vectors live, and how they get there."""
