"""HTTP routes, one module per concern; each exports `routes(registry, config)`."""
