"""From run logs to time to target, tables and figures."""
