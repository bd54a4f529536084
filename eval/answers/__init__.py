"""Which rows are asked, and what a model answered to them."""
