"""What every command shares: its arguments, progress, tables, and how it stops and reports errors."""
