"""HTTP: routes, access control, dashboard, server."""
