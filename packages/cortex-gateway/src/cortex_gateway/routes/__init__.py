"""Every route but the hot path, as Starlette endpoints over one `Gateway`."""

from __future__ import annotations

from starlette.routing import BaseRoute

from cortex_gateway.routes import admin, health, models, openapi, responses

__all__ = ["ADMIN_ROUTES", "METRICS_ROUTES", "ROUTES"]

ROUTES: list[BaseRoute] = [
    *models.ROUTES,
    *responses.ROUTES,
    *openapi.ROUTES,
    *health.ROUTES,
]
ADMIN_ROUTES: list[BaseRoute] = [*admin.ROUTES, *health.ROUTES]
METRICS_ROUTES: list[BaseRoute] = [*health.METRICS_ROUTES]
