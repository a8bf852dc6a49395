"""What can be asked of a model."""

import pytest
from conftest import tiny_unet

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.evaluation.questions import Question


def test_asking_for_cells_changes_no_scheduler():
    """The cells of a question are checked on a schedule of their own: the pipeline's scheduler stays as it was."""
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom())
    question = Question("tiny", "digits", "results.json", num_inference_steps=(2, 4), num_images=2)
    assert [cell.num_inference_steps for cell in question.cells(pipe)] == [2, 4]
    assert pipe.scheduler.num_inference_steps is None
    question.num_inference_steps = (2000,)
    with pytest.raises(ValueError, match="2000; allowed: whole numbers from 1 to 1000"):
        question.cells(pipe)
