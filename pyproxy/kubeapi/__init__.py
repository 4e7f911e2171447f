"""The API server: credentials, requests, list and watch, Events."""
