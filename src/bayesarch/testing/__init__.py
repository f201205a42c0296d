"""Contracts that every part keeps, ours and yours: call one in a test of your own.

    from bayesarch.testing import check_space
    def test_my_space(): check_space(MY_SPACE)

Each raises AssertionError with what is broken. They need no test runner.
"""

from bayesarch.testing.data import check_dataset as check_dataset
from bayesarch.testing.methods import check_method as check_method
from bayesarch.testing.methods import tricky_space as tricky_space
from bayesarch.testing.posteriors import check_posterior as check_posterior
from bayesarch.testing.spaces import check_space as check_space
from bayesarch.testing.supernets import check_supernet as check_supernet

__all__ = ["check_dataset", "check_method", "check_posterior", "check_space", "check_supernet", "tricky_space"]
