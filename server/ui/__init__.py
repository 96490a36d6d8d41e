"""A page over the store, live while runs go on. The only place for Starlette, uvicorn and Plotly; it only reads."""

from .address import PageAddress
from .app import create_app
from .serving import Page, require_packages

__all__ = ["Page", "PageAddress", "create_app", "require_packages"]
