"""Every route but the hot path, as Starlette endpoints over one `Gateway`."""

from __future__ import annotations

from starlette.routing import BaseRoute

from cortex_gateway.routes import admin, health, models

__all__ = ["ROUTES"]

ROUTES: list[BaseRoute] = [*models.ROUTES, *health.ROUTES, *admin.ROUTES]
