"""diffusers' own tests with our classes in place of its own; `test_diffusers_suites.py` runs them.

None of diffusers' code is here: the tests are those of the checkout that stands on PYTHONPATH.
"""

import unittest

from diffusers.utils import is_torchsde_available
from tests.schedulers.test_scheduler_ddim import DDIMSchedulerTest

from ddim_hf import DDIMSchedulerCustom


class TestScheduler(DDIMSchedulerTest):
    scheduler_classes = (DDIMSchedulerCustom,)

    @unittest.skipUnless(is_torchsde_available(), "builds each compatible scheduler, of which one needs torchsde")
    def test_compatibles(self):
        super().test_compatibles()


del DDIMSchedulerTest  # or pytest would collect it too, with diffusers' own class
