"""Small deployments on fakes that tests drive by hand, one module for each part of the product."""
