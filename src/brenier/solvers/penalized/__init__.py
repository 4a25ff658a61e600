"""Transport with a further term in the plan: classes that stay together, neighbours that stay neighbours."""
