"""From messages to a prompt, and from a worker's text to content, reasoning and tool calls.

Pure: no I/O but the reading of template files beside a model, no asyncio, no model name.
"""
