"""Objects of the Kubernetes API to values of the model: the only package that knows the API's field names."""
