"""From other dialects to chat completions and back. Pure: values and bytes in, bytes out."""
