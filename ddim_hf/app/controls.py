"""Controls that Gradio does not have."""

import gradio as gr

HTML = """
<label>${label} <input type="number" min="1" max="${most}" step="1"></label>
<input type="range" min="0" max="1000" step="1" aria-label="${label}, from 1 to ${most}, logarithmic">
"""
JAVASCRIPT = """
const number = element.querySelector("input[type=number]"), range = element.querySelector("input[type=range]");
const places = () => Math.log(props.most) / 1000;
const show = (steps) => {
  number.value = steps;
  range.value = Math.round(Math.log(steps) / places());
  range.setAttribute("aria-valuetext", steps + " steps");
};
const choose = (steps) => {
  props.value = Math.min(Math.max(Math.round(steps) || 1, 1), props.most);
  show(props.value);
  trigger("change");
};
range.addEventListener("input", () => show(Math.round(Math.exp(range.value * places()))));
range.addEventListener("change", () => choose(Math.exp(range.value * places())));
number.addEventListener("change", () => choose(number.valueAsNumber));
watch("value", () => show(props.value));
show(props.value);
"""


def steps_slider(value: int, most: int, label: str = "Steps") -> gr.HTML:
    """A number from 1 to `most`, with a logarithmic slider: most of what there is to see happens below 50."""
    return gr.HTML(
        value, label=label, most=most, html_template=HTML, js_on_load=JAVASCRIPT, elem_classes="steps", container=True
    )
