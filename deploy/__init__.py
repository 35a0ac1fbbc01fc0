"""How it is run for real: images, Prometheus, Grafana. Start with docker-compose.yml; nothing here is part of the package."""
