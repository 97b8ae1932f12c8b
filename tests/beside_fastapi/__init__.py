"""One service twice, in FastAPI and in natsweb, and the requests that both answer: see test_beside_fastapi.py."""
