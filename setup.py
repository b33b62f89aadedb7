"""How the package is built and what it needs. Tool settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def read(*path: str) -> str:
    file = HERE.joinpath(*path)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def version() -> str:
    """Reads the version without importing the package: Tornado may not be there yet."""
    found = re.search(r'^__version__ = "([^"]+)"', read("tornado_memcache", "__init__.py"), re.M)
    if found is None:
        raise RuntimeError("tornado_memcache/__init__.py has no __version__")
    return found.group(1)


setup(
    name="tornado_memcache",
    version=version(),
    description="The memcached client for Tornado: callbacks or await, on time, nothing left over",
    long_description=read("README.rst"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    packages=["tornado_memcache"],
    package_data={"tornado_memcache": ["py.typed"]},
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=["tornado>=6.4"],
    extras_require={
        "test": [
            # pytest-tornado 0.8 imports pkg_resources, and marks its hooks
            # in a way that pytest 10 refuses.
            "pytest>=8,<10",
            "pytest-tornado>=0.8.1,<0.9",
            "setuptools<82",
            "hypothesis>=6.100,<7",
            # Many runs: each in another order, on two cores, on either loop.
            "pytest-random-order>=1.1,<2",
            "pytest-xdist>=3.5,<4",
            "uvloop>=0.21",
            # Certificates for the servers that are spoken to over TLS.
            "trustme>=1.1,<2",
            # What these two accept changes from one release to the next.
            "mypy>=2.4,<2.5",
            "ruff>=0.17,<0.18",
            # The clients that ours must agree with, each at the release that was looked at.
            "python-memcached==1.62",
            "pylibmc==1.6.3",
            "pymemcache==4.0.0",
            # ... and these, which the embedded server must agree with too.
            "aiomcache==0.8.2",
            "emcache==1.3.3",
            # What the extras below ask for, and what keeps the spans that are made.
            "prometheus_client>=0.20,<1",
            "opentelemetry-api>=1.27,<2",
            "opentelemetry-sdk>=1.27,<2",
        ],
        # tornado_memcache.prometheus_observer, tornado_memcache.opentelemetry_observer.
        "prometheus": ["prometheus_client>=0.20,<1"],
        "opentelemetry": ["opentelemetry-api>=1.27,<2"],
        # python -m tests.fuzz_parser. It is not built for every Python and system.
        "fuzz": ["atheris>=2.3,<4"],
        # The peers that the benchmarks compare with.
        "benchmarks": [
            "aiomcache==0.8.2",
            "emcache==1.3.3",
            "memcachio==0.5",
            "pymemcache==4.0.0",
            "python-memcached==1.62",
            "pylibmc==1.6.3",
            "uvloop>=0.21",
            # What an observer costs.
            "prometheus_client>=0.20,<1",
            "opentelemetry-sdk>=1.27,<2",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AsyncIO",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
)
