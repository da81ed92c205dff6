"""HTTP: access, connections, request bodies, responses, errors, images fetched from URLs."""
