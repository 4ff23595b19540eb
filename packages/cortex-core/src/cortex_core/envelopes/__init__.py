"""Requests and responses of the HTTP APIs, as msgspec types."""
