"""Programs for people who work on cortex; nothing here is installed or imported by it."""
