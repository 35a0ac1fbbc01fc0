"""The dashboards as code, and how Grafana is provisioned with them. Start with dashboards.py."""
