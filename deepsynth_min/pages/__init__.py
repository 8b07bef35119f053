"""Text and images -> uint8 pages [N, H, W], 255 paper and 0 ink."""

from .renderer import Pages, render_batch, render_pages
from .style import PageStyle

__all__ = ["PageStyle", "Pages", "render_batch", "render_pages"]
