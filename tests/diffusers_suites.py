"""diffusers' own tests with our classes in place of its own; `test_diffusers_suites.py` runs them.

None of diffusers' code is here: the tests are those of the checkout that stands on PYTHONPATH.
"""

import unittest

from diffusers.utils import is_torchsde_available
from tests.pipelines.ddim.test_ddim import DDIMPipelineFastTests
from tests.schedulers.test_scheduler_ddim import DDIMSchedulerTest

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom


class TestScheduler(DDIMSchedulerTest):
    scheduler_classes = (DDIMSchedulerCustom,)

    @unittest.skipUnless(is_torchsde_available(), "builds each compatible scheduler, of which one needs torchsde")
    def test_compatibles(self):
        super().test_compatibles()


class TestPipeline(DDIMPipelineFastTests):
    pipeline_class = DDIMCustomPipeline


del DDIMSchedulerTest, DDIMPipelineFastTests  # or pytest would collect them too, with diffusers' own classes
