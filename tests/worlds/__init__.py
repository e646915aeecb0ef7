"""Small deployments on fakes that tests operate by hand, one module for each part of the product."""
