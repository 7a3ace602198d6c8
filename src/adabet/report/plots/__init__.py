"""Small plots as SVG: they follow the page's width and colours, and have a text for those who do not see them."""
